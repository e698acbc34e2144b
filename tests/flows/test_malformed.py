"""What is wrong with an input is told in one line that names the place and the remedy; nothing is written."""

from __future__ import annotations

import gzip
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from flows.curate import Curated, curate
from flows.deploy import deploy
from flows.train import train
from flows.train_sae import train_sae
from tests.conftest import TOY
from tests.flows.conftest import Run, make_config, toy_rows, write_config

Break = Callable[[Path], list[object]]
"""Breaks something in a folder that holds `run.yaml` and its data; gives the arguments of `saerl`."""

ROWS = toy_rows(40)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def data(name: str, content: bytes, *settings: str) -> Break:
    """Curate other data."""
    def to(folder: Path) -> list[object]:
        (folder / name).write_bytes(content)
        return setting(f"data.path={name}", *settings)(folder)
    return to


def row(change: dict[str, Any], *settings: str) -> Break:
    """Curate rows the third of which is changed."""
    rows = [{**given, **change} if number == 2 else given for number, given in enumerate(ROWS)]
    return data("rows.jsonl", "".join(json.dumps(given) + "\n" for given in rows).encode(), *settings)


def setting(*settings: str, command: str = "curate") -> Break:
    """Run a command with fields of the config changed."""
    def to(folder: Path) -> list[object]:
        return [command, folder / "run.yaml", *(part for text in settings for part in ("--set", text))]
    return to


def config(content: str | bytes) -> Break:
    """Curate by another config file."""
    def to(folder: Path) -> list[object]:
        (folder / "run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["curate", folder / "run.yaml"]
    return to


def model(file: str, content: bytes | Callable[[bytes], bytes] | None, field: str = "features.model") -> Break:
    """Read a copy of the toy's model, one file of which is changed, or missing."""
    def to(folder: Path) -> list[object]:
        _change(Path(shutil.copytree(TOY / "lm", folder / "lm")) / file, content)
        return setting(f"{field}=./lm")(folder)
    return to


def sae(file: str, content: bytes | Callable[[bytes], bytes] | None) -> Break:
    """Read through a copy of the toy's SAE, one file of which is changed, or missing."""
    def to(folder: Path) -> list[object]:
        _change(Path(shutil.copytree(TOY / "sae", folder / "sae")) / file, content)
        return setting("features.sae=./sae")(folder)
    return to


def field(**changes: Any) -> Callable[[bytes], bytes]:
    """Change fields of a JSON file; those that become null are removed."""
    def change(content: bytes) -> bytes:
        tree = {**json.loads(content), **changes}
        return json.dumps({name: value for name, value in tree.items() if value is not None}).encode()
    return change


def manifest(*command: str, file: str = "manifest.json", content: bytes | Callable[[bytes], bytes] | None) -> Break:
    """Run a command on a manifest, one file of which is changed, or missing."""
    def to(folder: Path) -> list[object]:
        (made,) = (folder / "manifests").iterdir()
        _change(made / file, content)
        return [made if part == "MANIFEST" else folder / part if part in ("run.yaml", "OUT") else part
                for part in command]
    return to


def export(target: str) -> Break:
    """Export a sound manifest to some place."""
    def to(folder: Path) -> list[object]:
        (made,) = (folder / "manifests").iterdir()
        return ["export", made, folder / target]
    return to


def resealed(**changes: Any) -> Break:
    """A manifest whose header was rewritten, and its folder renamed accordingly."""
    def to(folder: Path) -> list[object]:
        from saerl_core.hashing import hash_file

        (made,) = (folder / "manifests").iterdir()
        _change(made / "manifest.json", field(**changes))
        return ["manifest", "verify", made.rename(made.with_name(hash_file(made / "manifest.json")[:16]))]
    return to


def checkpoint(job: str | None, step: int = 2, **changes: Any) -> Break:
    """Train on from a checkpoint of another run whose `job.json` is changed."""
    def to(folder: Path) -> list[object]:
        (made,) = (folder / "manifests").iterdir()
        target = folder / "old" / "checkpoints" / f"global_step_{step}" / "actor" / "huggingface"
        shutil.copytree(TOY / "lm", target)
        if changes:
            _change(target / "config.json", field(**changes))
        if job is not None:
            (folder / "old" / "job.json").write_text(job)
        heldout = "data.heldout={path: prompts.jsonl, columns: {prompt: problem}}"
        return ["train", made, folder / "run.yaml", "-s", heldout, "-s",
                f"train.resume_from=old/checkpoints/global_step_{step}"]
    return to


def verifier(source: str) -> Break:
    """Curate with a verifier of one's own."""
    def to(folder: Path) -> list[object]:
        module = f"mine_{abs(hash(source))}"
        (folder / f"{module}.py").write_text(source)
        return setting(f"policy.verifier=import:{module}:judge")(folder)
    return to


def server(answer: str, command: str = "curate") -> Break:
    """Label by a server that answers in some way (see `bad_server`)."""
    def to(folder: Path) -> list[object]:
        url = (folder / "url").read_text()
        labels = "labels={source: server, count: 20, samples: 1, server: {url: '" + f"{url}/{answer}" + \
            "', model: toy, retries: 0}}"
        return [command, folder / "run.yaml", "-s", labels, "-s", "quality.method=none"]
    return to


def _change(path: Path, content: bytes | Callable[[bytes], bytes] | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))


def _nothing(folder: Path) -> list[object]:
    (folder / "parts").mkdir()
    return setting("data.path=parts")(folder)


def _not_data(folder: Path) -> list[object]:
    (folder / "parts").mkdir()
    (folder / "parts" / "a.txt").write_text("?")
    return setting("data.path=parts")(folder)


def _folder_for_config(folder: Path) -> list[object]:
    return ["curate", folder / "manifests"]


def _damaged_record(*command: str) -> Break:
    def to(folder: Path) -> list[object]:
        (made,) = (folder / "manifests").iterdir()
        (folder / "published").mkdir()
        (folder / "published" / f"{made.name}.json").write_text('{"runs": 3}')
        return [*command, folder / "run.yaml", "-s", "workspace=."] if command == ("gc",) else [*command, made]
    return to


def _pickled_only(folder: Path) -> list[object]:
    copy = Path(shutil.copytree(TOY / "lm", folder / "lm"))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    return setting("policy.model=./lm")(folder)


ZST = pa.compress(LINES, codec="zstd", asbytes=True)
PASS_RATE = "data.columns={id: id, prompt: problem, answer: answer, pass_rate: rate}"
QUALITY = "data.columns={id: id, prompt: problem, answer: answer, quality: good}"
LEVEL = "data.columns={id: id, prompt: problem, answer: answer, level: level}"
JOB = {"format": 1, "manifest": "0" * 16, "identity": "1" * 64, "batch_size": 8}

CASES: dict[str, tuple[Break, tuple[str, ...]]] = {
    # data: files
    "no such file": (setting("data.path=nowhere.jsonl"), ("nowhere.jsonl: no such file",)),
    "no data in the folder": (_nothing, ("parts: no data files in this folder",)),
    "a stranger in the folder": (_not_data, ("a.txt: unknown kind of file",)),
    "unknown kind of file": (data("rows.txt", LINES), ("rows.txt: unknown kind", ".jsonl")),
    "empty file": (data("rows.jsonl", b""), ("rows.jsonl: no rows",)),
    "blank lines only": (data("rows.jsonl", b"\n \n"), ("rows.jsonl: no rows",)),
    "not UTF-8": (data("rows.jsonl", b"\xff\xfe{}\n"), ("rows.jsonl: cannot be read",)),
    "broken JSON": (data("rows.jsonl", LINES + b'{"id": 1,'), ("rows.jsonl, line 41: broken JSON",)),
    "nested without end": (data("rows.jsonl", b"[" * 100_000), ("rows.jsonl, line 1: broken JSON",)),
    "a line that is a list": (data("rows.jsonl", LINES + b"[1]\n"), ("line 41: expected an object, found list",)),
    "not gzip": (data("rows.jsonl.gz", LINES), ("rows.jsonl.gz: cannot be read",)),
    "gzip cut short": (data("rows.jsonl.gz", gzip.compress(LINES)[:-20]), ("rows.jsonl.gz: cannot be read",)),
    "gzip with a flipped byte": (data("rows.jsonl.gz", b"".join([gzip.compress(LINES)[:60], b"\x99\x99\x99",
                                                                 gzip.compress(LINES)[63:]])),
                                 ("rows.jsonl.gz",)),
    "not zstd": (data("rows.jsonl.zst", LINES), ("rows.jsonl.zst: cannot be read",)),
    "zstd cut short": (data("rows.jsonl.zst", ZST[: len(ZST) // 2]), ("rows.jsonl.zst",)),
    "CSV with a field too many": (data("rows.csv", b"id,problem,answer\n1,What?,3,4\n"),
                                  ("rows.csv, line 2: another number of fields",)),
    "CSV with a field too few": (data("rows.csv", b"id,problem,answer\n1,What?\n"),
                                 ("rows.csv, line 2: another number of fields",)),
    "CSV with an open quote": (data("rows.csv", b'id,problem,answer\n1,"What?,3\n'), ("rows.csv: cannot be read",)),
    "CSV with a header only": (data("rows.csv", b"id,problem,answer\n"), ("rows.csv: no rows",)),
    "not Parquet": (data("rows.parquet", LINES), ("rows.parquet: cannot be read",)),
    "empty Parquet file": (data("rows.parquet", b""), ("rows.parquet: cannot be read",)),
    "not Arrow": (data("rows.arrow", LINES), ("rows.arrow: cannot be read",)),
    "empty Arrow file": (data("rows.arrow", b""), ("rows.arrow: cannot be read",)),
    "a hub name with no owner": (setting("data.path=hub:nowhere"), ("expected hub:owner/name",)),
    "a hub name that climbs": (setting("data.path=hub:../etc"), ("hub:../etc",)),
    "a hub data set that is not there": (setting("data.path=hub:owner/name"), ("hub:owner/name (split 'train')",)),
    "a split of a file": (setting("data.split=test"), ("split = 'test' belongs to",)),
    "no such evaluation set": (setting("data.decontaminate=[{path: no.parquet}]"), ("no.parquet: no such file",)),
    # data: rows
    "no such column": (setting("data.columns.prompt=question"), ("no column 'question' for the prompt",
                                                                  "set data.columns.prompt")),
    "no such nested column": (setting("data.columns.answer=a.b"), ("no column 'a.b' for the answer",)),
    "no row has the optional column": (setting("data.columns.subject=theme"), ("no row has the column 'theme'",)),
    "empty prompt": (row({"problem": " "}), ("rows.jsonl, line 3: problem is empty",)),
    "prompt is a number": (row({"problem": 5}), ("line 3: problem is 5: expected text or a list",)),
    "prompt is no list of messages": (row({"problem": [{"content": "x"}]}), ("line 3", "a chat message needs `role`")),
    "prompt without a user": (row({"problem": [{"role": "system", "content": "x"}]}), ("line 3", "role 'user'")),
    "prompt is half a character": (row({"problem": "\ud800"}), ("line 3: 'problem' holds half",)),
    "answer is half a character": (row({"answer": "\udfff"}), ("line 3", "answer")),
    "answer is null": (row({"answer": None}), ("line 3: answer is None: expected the answer",)),
    "answer is a list": (row({"answer": ["4"]}), ("line 3: answer is ['4']",)),
    "answer is not a number": (row({"answer": float("nan")}), ("line 3: answer is nan",)),
    "answer is empty": (row({"answer": " "}), ("line 3: answer is empty",)),
    "answer does not match": (setting("data.answer_pattern='####(.+)'"), ("line 1: answer does not match",)),
    "two rows of one id": (row({"id": ROWS[0]["id"]}), ("line 3: id = ", "line 1 already")),
    "empty id": (row({"id": ""}), ("line 3: id is empty",)),
    "id is half a character": (row({"id": "\ud800"}), ("line 3", "id")),
    "pass rate above 1": (row({"rate": 1.5}, PASS_RATE), ("line 3: rate = 1.5: expected a number from 0.0 to 1.0",)),
    "pass rate is a word": (row({"rate": "often"}, PASS_RATE), ("line 3: rate is 'often': expected a number",)),
    "quality is not a number": (row({"good": float("nan")}, QUALITY), ("line 3: good = nan",)),
    "level is endless": (row({"level": float("inf")}, LEVEL), ("line 3: level = inf: expected a finite number",)),
    "fewer rows than a batch": (data("rows.jsonl", LINES[: LINES.index(b"\n")]), ("batch_size = 8 is larger",)),
    # config
    "no such config": (lambda folder: ["curate", folder / "no.yaml"], ("no.yaml: no such config", "saerl init")),
    "config is a folder": (_folder_for_config, ("manifests: cannot be read as text",)),
    "config is not text": (config(b"\xff\xfe\x00"), ("run.yaml: cannot be read as text",)),
    "config is not YAML": (config("data: [1"), ("run.yaml: not valid YAML",)),
    "config with a control character": (config("data: \x00"), ("run.yaml: not valid YAML",)),
    "config is a list": (config("- 1"), ("run.yaml: expected sections such as `data:`",)),
    "config is empty": (config(""), ("run.yaml: expected sections such as `data:`",)),
    "config makes objects": (config("data: !!python/object/apply:os.system ['true']"), ("run.yaml: not valid YAML",)),
    "config nested without end": (config("[" * 20_000), ("run.yaml: not valid YAML",)),
    "config whose keys are numbers": (config("1: 2"), ("run.yaml",)),
    "sections are missing": (config("name: x"), ("data is missing (and 2 more)",)),
    "a section is a number": (config("data: 3"), ("data = 3",)),
    "unknown key": (setting("shedule.seed=1"), ("unknown key 'shedule'; did you mean 'schedule'?",)),
    "unknown field": (setting("schedule.sed=1"), ("unknown key 'schedule.sed'; did you mean 'seed'?",)),
    "override without a value": (setting("schedule.seed"), ("'schedule.seed': expected section.field=value",)),
    "override below a number": (setting("schedule.seed.x=1"), ("'seed' is not a section",)),
    "override that is not YAML": (setting("schedule.seed=[1"), ("the value is not valid YAML",)),
    "a word for a number": (setting("clusters.k=one"), ("clusters.k = 'one'",)),
    "a number that is none": (setting("train.learning_rate=.nan"), ("train.learning_rate = nan",)),
    "a number without end": (setting("train.learning_rate=.inf"), ("train.learning_rate = inf",)),
    "a name that climbs": (setting("name=../other"), ("name = '../other'",)),
    "an expression that is none": (setting("data.answer_pattern='('"), ("data.answer_pattern = '('",)),
    "an expression without a group": (setting("data.answer_pattern=x"), ("needs a group",)),
    "more clusters than a batch": (setting("schedule.clusters_per_batch=9"), ("schedule.batch_size (8)",)),
    "labels without a column": (setting("labels.source=column"), ("data.columns.pass_rate names none",)),
    "labels without a server": (setting("labels.source=server"), ("labels.server is not set",)),
    "a password in a URL": (setting("labels.server={url: 'http://a:b@c', model: m}"), ("labels.server.url",)),
    "a key that is not set": (setting("labels={source: server, server: {url: 'http://127.0.0.1:9', model: m, "
                                      "api_key_env: SAERL_NO_SUCH_KEY}}", "quality.method=none", command="check"),
                              ("SAERL_NO_SUCH_KEY is not set",)),
    "GPUs that cannot be shared out": (setting("train.tensor_parallel=2"), ("train.gpus (1) is not a multiple",)),
    "packaged files that are none": (setting("data.path=saerl:../../etc/passwd"), ("names nothing that ships",)),
    "a path with a null": (setting('data.path="a\\0b"'), ("'a\\x00b' is no path",)),
    "a path of a stranger": (setting("workspace=~nobody-there/x"), ("'~nobody-there/x' is no path",)),
    # model
    "no such model": (setting("features.model=./nowhere"), ("nowhere: no model there",)),
    "model without config": (model("config.json", None), ("lm: no model there (no config.json)",)),
    "model's config is broken": (model("config.json", b"{"), ("config.json: unreadable",)),
    "model's config is a list": (model("config.json", b"[]"), ("config.json: expected a JSON object",)),
    "model's config nested without end": (model("config.json", b"[" * 100_000), ("config.json: unreadable",)),
    "model without layers": (model("config.json", field(num_hidden_layers=None)), ("num_hidden_layers",)),
    "model of a wrong depth": (model("config.json", field(num_hidden_layers="many")), ("config.json", "many")),
    "model without weights": (model("model.safetensors", None), ("lm: no safetensors",)),
    "policy with pickled weights only": (_pickled_only, ("lm: no safetensors", "pickle")),
    "policy without weights": (model("model.safetensors", None, "policy.model"), ("lm: no safetensors",)),
    "model of another width": (model("config.json", field(hidden_size=64)), ("d_in 128", "stream of 64")),
    # SAE
    "no such SAE": (setting("features.sae=./nowhere"), ("nowhere: no SAE", "saerl train-sae")),
    "SAE without config": (sae("cfg.json", None), ("sae: no SAE in sae-lens's format there (no cfg.json)",)),
    "SAE without weights": (sae("sae_weights.safetensors", None), ("(no sae_weights.safetensors)",)),
    "SAE's config is broken": (sae("cfg.json", b"{"), ("cfg.json: not an SAE configuration",)),
    "SAE's config is a list": (sae("cfg.json", b"[]"), ("cfg.json: not an SAE configuration",)),
    "SAE's config nested without end": (sae("cfg.json", b"[" * 100_000), ("cfg.json: not an SAE configuration",)),
    "SAE without a width": (sae("cfg.json", field(d_in=None)), ("cfg.json: not an SAE configuration", "d_in")),
    "SAE with more features at once than it has": (sae("cfg.json", field(k=10**6)), ("cfg.json: k = 1000000",)),
    "SAE of another width": (sae("cfg.json", field(d_in=64)), ("features.sae has d_in 64",)),
    "SAE of an MLP": (sae("cfg.json", field(metadata={"hook_name": "blocks.2.hook_mlp_out"})), ("hook_mlp_out",)),
    "SAE of a layer that is not there": (sae("cfg.json", field(metadata={"hook_name": "blocks.9.hook_resid_post"})),
                                         ("features.layer = 9", "has 4 layers")),
    "another layer than the SAE's": (setting("features.layer=1"), ("features.sae was trained on layer 2",)),
    "an SAE's release that is not known": (setting("features.sae=sae-lens:nowhere/x"), ("sae-lens:nowhere/x",)),
    # manifests
    "no such manifest": (lambda folder: ["manifest", "verify", folder / "no"], ("no: no such manifest",)),
    "manifest without header": (manifest("manifest", "verify", "MANIFEST", content=None), ("no manifest.json there",)),
    "manifest's header is broken": (manifest("manifest", "show", "MANIFEST", content=b"{"), ("unreadable header",)),
    "manifest's header is a list": (manifest("manifest", "show", "MANIFEST", content=b"[]"), ("not a SAERL header",)),
    "manifest's header nested without end": (manifest("manifest", "show", "MANIFEST", content=b"[" * 100_000),
                                             ("manifest.json: unreadable header",)),
    "manifest's header lists files badly": (manifest("manifest", "verify", "MANIFEST", content=field(files={"a": 1})),
                                            ("manifest.json: ",)),
    "manifest's header names other folders": (resealed(files={"../../prompts.jsonl": {"sha256": "0", "size": 1}}),
                                              ("manifest.json", "../../prompts.jsonl")),
    "manifest's header lacks counts": (resealed(prompts=None), ("manifest.json", "prompts")),
    "manifest's header counts badly": (resealed(prompts={"read": 9, "kept": 1, "dropped": 1}), ("read 9",)),
    "manifest's header is changed": (manifest("manifest", "verify", "MANIFEST", content=field(seed=99)),
                                     ("manifest.json: does not hash to",)),
    "manifest's rows are changed": (manifest("train", "MANIFEST", "run.yaml", file="train.parquet",
                                             content=lambda old: old[:50] + bytes([old[50] ^ 1]) + old[51:]),
                                    ("train.parquet: changed since it was written",)),
    "manifest's rows are cut short": (manifest("export", "MANIFEST", "OUT", file="train.parquet",
                                               content=lambda old: old[:-1]), ("train.parquet:", "bytes")),
    "a stranger in the manifest": (manifest("manifest", "verify", "MANIFEST", file="x", content=b"?"),
                                   ("x: does not belong to this artifact",)),
    "a previous manifest that is none": (setting("clusters.previous=nowhere"), ("nowhere: no such manifest",)),
    "a damaged record beside a manifest": (_damaged_record("manifest", "show"), ("published", "damaged")),
    "a damaged record in the workspace": (_damaged_record("gc"), ("published", "damaged")),
    # export targets
    "export over a file": (export("run.yaml"), ("run.yaml: exists already",)),
    "export below a file": (export("run.yaml/x"), ("run.yaml/x",)),
    "export to an unknown format": (manifest("export", "MANIFEST", "OUT", "--format", "xml", file="x", content=b""),
                                    ("--format xml: unknown",)),
    # checkpoints
    "no such checkpoint": (lambda folder: [*checkpoint(None)(folder)[:-1], "train.resume_from=no/global_step_2"],
                           ("train.resume_from", "no/global_step_2")),
    "checkpoint of no job": (checkpoint(None), ("train.resume_from", "is no checkpoint of a training run")),
    "checkpoint of a broken job": (checkpoint("{"), ("train.resume_from", "is no checkpoint")),
    "checkpoint of a job that is a list": (checkpoint("[]"), ("train.resume_from", "is no checkpoint")),
    "checkpoint of a job without batch size": (checkpoint(json.dumps({**JOB, "batch_size": None})),
                                               ("train.resume_from", "None")),
    "checkpoint of other batches": (checkpoint(json.dumps({**JOB, "batch_size": 16})), ("batches of 16",)),
    "checkpoint past the end": (checkpoint(json.dumps(JOB), step=999), ("is at step 999",)),
    "checkpoint of another model": (checkpoint(json.dumps(JOB), hidden_size=64), ("4 x 64",)),
    # verifiers
    "verifier that is none": (setting("policy.verifier=fuzzy"), ("policy.verifier = 'fuzzy'",)),
    "verifier that is not there": (setting("policy.verifier=import:nowhere_at_all:judge"), ("nowhere_at_all cannot",)),
    "verifier without the function": (verifier("x = 1"), ("policy.verifier", "has no plain function 'judge'")),
    "verifier that does not compile": (verifier("def judge("), ("policy.verifier", "SyntaxError")),
    "verifier that leaves": (verifier("import sys; sys.exit(3)"), ("policy.verifier", "SystemExit")),
    "verifier of one argument": (verifier("def judge(response): return 1"), ("policy.verifier", "cannot be called")),
    "verifier that runs later": (verifier("async def judge(response, answer): return 1"), ("no plain function",)),
    # labels by a server, events, and other commands
    "server that is not there": (setting("labels={source: server, server: {url: 'http://127.0.0.1:9', model: m}}",
                                         "quality.method=none", command="check"), ("no server answers at",)),
    "server that is another one": (server("html", "check"), ("does not answer as an OpenAI-compatible server",)),
    "server without the model": (server("other", "check"), ("labels.server.model = 'toy' is not served",)),
    "server that wants a key": (server("locked", "check"), ("401", "labels.server.api_key_env")),
    "port that is taken": (lambda folder: ["serve", folder / "run.yaml", "--port",
                                           (folder / "url").read_text().split(":")[-1]], ("is taken on 127.0.0.1",)),
    "no section for an SAE's training": (setting(command="train-sae"), ("sae_training is not set",)),
    "SAE over something else": (setting("sae_training={out: manifests}", command="train-sae"), ("manifests",)),
    "SAE's corpus lacks the column": (setting("sae_training={out: new, corpus: {path: prompts.jsonl}}",
                                              command="train-sae"), ("text",)),
    "no workspace": (setting("workspace=nowhere", command="gc"), ("nowhere: no workspace of SAERL's there",)),
    "a config that is there already": (lambda folder: ["init", folder / "run.yaml"], ("run.yaml: exists already",)),
    "a toy over something else": (lambda folder: ["toy", "build", folder / "manifests"], ("already exists",)),
}

IN_THE_RUN: dict[str, tuple[Break, tuple[str, ...]]] = {
    "verifier that fails on an answer": (verifier("def judge(response, answer): return 1 / 0"),
                                         ("policy.verifier", "failed on the answer", "ZeroDivisionError")),
    "verifier that says maybe": (verifier("def judge(response, answer): return 'maybe'"), ("gave 'maybe'",)),
    "tokenizer is missing": (model("tokenizer.json", b"{", "policy.model"), ("lm: no usable tokenizer",)),
    "weights are cut short": (model("model.safetensors", lambda old: old[:-100]), ("lm: transformers cannot load it",)),
    "weights are no safetensors": (model("model.safetensors", b"\x80\x04."), ("lm: transformers cannot load it",)),
    "weights' header is endless": (model("model.safetensors", b"\xff" * 64), ("lm: transformers cannot load it",)),
    "policy's weights are cut short": (model("model.safetensors", lambda old: old[:-100], "policy.model"),
                                       ("lm: cannot be loaded as a causal LM",)),
    "SAE's weights are cut short": (sae("sae_weights.safetensors", lambda old: old[:-100]),
                                    ("sae: sae-lens cannot load it",)),
    "SAE of an unknown kind": (sae("cfg.json", field(architecture="magic")), ("sae: sae-lens cannot load it",)),
    "SAE of another size": (sae("cfg.json", field(d_sae=64)), ("sae: sae-lens cannot load it",)),
    "server gives no completion": (server("html"), ("gave no chat completion",)),
    "server gives no choices": (server("empty"), ("gave no choices",)),
    "server gives a list": (server("list"), ("gave no chat completion",)),
    "server is broken": (server("broken"), ("answers 500",)),
    "server hangs up": (server("hangup"), ("failed 1 times", "what has been labelled is kept")),
}


Fill = Callable[[dict[str, Any]], dict[str, Any]]
"""Fills the form of a deployment badly: the parameters of a sound run → other ones."""


def form(section: str, **fields: Any) -> Fill:
    """Other values in a section of the config."""
    return lambda given: {**given, "config": {**given["config"], section: {**given["config"][section], **fields}}}


def parameter(name: str, value: Any) -> Fill:
    return lambda given: {**given, name: value}


FORMS: dict[str, tuple[str, Fill, str]] = {
    # what the server refuses, before there is a run
    "unknown section": ("curate", lambda given: {"config": {**given["config"], "shedule": {}}}, "shedule"),
    "unknown field": ("curate", form("clusters", kk=3), "kk"),
    "unknown nested field": ("train", form("data", heldout={"path": "x", "colums": {}}), "colums"),
    "wrong type": ("curate", form("schedule", batch_size="many"), "batch_size"),
    "wrong choice": ("curate", form("difficulty", method="magic"), "method"),
    "out of range": ("curate", form("features", shard_rows=0), "shard_rows"),
    "config that is a path": ("curate", parameter("config", "run.yaml"), "config"),
    "config that is null": ("curate", parameter("config", None), "config"),
    "section that is a list": ("curate", lambda given: {"config": {**given["config"], "data": []}}, "data"),
    "section that is missing": ("curate", lambda given: {"config": {"data": given["config"]["data"]}}, "features"),
    "manifest that is a number": ("train", parameter("manifest", 5), "manifest"),
    # what the run itself finds
    "fields that contradict each other": ("curate", form("schedule", clusters_per_batch=99), "clusters_per_batch (99)"),
    "name that is a path": ("curate", lambda given: {"config": {**given["config"], "name": "../x"}}, "name"),
    "data that are gone": ("curate", form("data", path="gone.jsonl"), "gone.jsonl: no such file"),
    "held-out set that is gone": ("train", form("data", heldout={"path": "gone.jsonl"}), "gone.jsonl: no such file"),
    "no held-out set": ("train", form("data", heldout=None), "data.heldout is not set"),
    "base that is gone": ("curate", lambda given: {"config": {**given["config"], "base": "/no/such/place"}},
                          "/no/such/place/prompts.jsonl: no such file"),
    "SAE that is gone": ("curate", form("features", sae="./gone"), "gone: no SAE"),
    "nothing to train an SAE on": ("train-sae", lambda given: given, "sae_training is not set"),
    # what an event may bring
    "event without a path": ("train", parameter("manifest", ""), "no manifest.json there"),
    "event with another path": ("train", parameter("manifest", "nowhere"), "nowhere: no such manifest"),
    "event with a template": ("train", parameter("manifest", "{{ event.resource['saerl.path'] }}"), "no such manifest"),
}
FLOWS: dict[str, Any] = {"curate": curate, "train": train, "train-sae": train_sae}
SEEN_BY_THE_SERVER = list(FORMS)[: list(FORMS).index("fields that contradict each other")]


@pytest.fixture(scope="module")
def bad_server() -> Iterator[str]:
    """A server that answers in whatever way the path says."""
    replies: dict[str, tuple[int, Any]] = {
        "html": (200, "<html>"), "other": (200, {"data": [{"id": "another"}]}), "locked": (401, "who are you?"),
        "empty": (200, {"choices": []}), "list": (200, [1]), "broken": (500, "oh\nno")}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length", 0))
            self.rfile.read(length)
            kind = self.path.split("/")[1]
            if kind == "hangup":
                self.close_connection = True
                return
            code, body = replies[kind]
            text = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that hang up first are none of our concern."""

    with Server(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture
def place(tmp_path: Path, curated_once: tuple[Path, Curated], bad_server: str) -> Path:
    """A folder with a config, its data, and a sound manifest to break."""
    write_config(tmp_path)
    (tmp_path / "url").write_text(bad_server)
    made = curated_once[1].manifest.path
    shutil.copytree(made, tmp_path / "manifests" / made.name)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_is_one_line_with_exit_code_2_and_nothing_is_written(saerl: Run, place: Path, case: str) -> None:
    break_it, words = CASES[case]
    arguments = break_it(place)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    code, out, err = saerl(*arguments)
    assert (code, out, err.strip().count("\n")) == (2, "", 0), err
    assert err.strip().startswith("saerl: ")
    assert not [word for word in words if word not in err], err
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert after == before


@pytest.mark.parametrize("case", IN_THE_RUN)
def test_what_only_a_run_can_see_ends_it_with_one_line_and_no_manifest(saerl: Run, place: Path, case: str) -> None:
    break_it, words = IN_THE_RUN[case]
    code, out, err = saerl(*break_it(place))
    last = err.splitlines()[-1]
    assert (code, out, "Traceback" in err) == (2, "", False), err
    assert last.startswith("saerl: ")
    assert not [word for word in words if word not in last], last
    assert not list((place / "saerl-out").glob("manifests/*"))
    assert not list((place / "saerl-out").rglob(".tmp*"))


@pytest.mark.parametrize("case", FORMS)
def test_a_deployments_run_with_a_badly_filled_form_fails_with_words_and_writes_nothing(
        place: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    name, fill, words = FORMS[case]
    before = sorted(place.rglob("*"))
    state: Any = FLOWS[name](**fill(_form(place, name)), return_state=True)
    assert state.is_failed()
    assert words in state.message
    assert "Traceback" not in state.message
    assert sorted(place.rglob("*")) == before


def test_a_server_does_not_even_take_a_form_that_its_schema_forbids(
        place: Path, curated_once: tuple[Path, Curated], monkeypatch: pytest.MonkeyPatch) -> None:
    url = get_current_settings().api.url
    assert url is not None
    monkeypatch.setenv("PREFECT_API_URL", url)
    heldout = {"path": "prompts.jsonl", "columns": {"prompt": "problem"}}
    deploy(make_config(place, data={"heldout": heldout}).model_copy(update={"name": "forms"}))
    with get_client(sync_client=True) as client:
        for case in SEEN_BY_THE_SERVER:
            name, fill, words = FORMS[case]
            deployment = client.read_deployment_by_name(f"{name}/forms")
            with pytest.raises(PrefectHTTPStatusError) as refused:
                client.create_flow_run_from_deployment(deployment.id, parameters=fill(_form(place, name)))
            assert refused.value.response.status_code == 409, case
            assert words in refused.value.response.json()["detail"], case


def _form(folder: Path, name: str) -> dict[str, Any]:
    """The parameters of a sound run."""
    heldout = {"path": "prompts.jsonl", "columns": {"prompt": "problem"}}
    tree = make_config(folder, rows=60, data={"heldout": heldout}).model_dump(mode="json")
    (made,) = (folder / "manifests").iterdir()
    return {"config": tree, **({"manifest": str(made)} if name == "train" else {})}


def test_there_are_enough_of_them() -> None:
    assert len(CASES) + len(IN_THE_RUN) + len(FORMS) >= 140
