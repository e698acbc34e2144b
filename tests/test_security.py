"""No pickle is read, no code of a model runs, nobody but this machine is served, and no secret is written down."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import faults
from saerl_core import artifact, gc, locations, models, published, sae_spec
from saerl_core.artifact import ArtifactRef
from saerl_core.config import build_config
from saerl_core.errors import ConfigError, ModelError, SaerlError
from saerl_core.export import export
from saerl_core.rl.consumed import consumed_batches
from saerl_core.rl.rollouts import load_policy
from saerl_core.sae import load_sae
from saerl_core.sources import find_files
from tests.conftest import ROOT, TOY
from tests.outside import SECRETS, addresses_heard, holding_secrets
from tests.rl.tiny import save_heldout, save_manifest, save_tiny_policy

SOURCES = [path for folder in ("saerl_core", "tasks", "flows", "benchmarks")
           for path in sorted((ROOT / folder).rglob("*.py"))]


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "exploded"


@pytest.fixture
def bomb(mark: Path) -> bytes:
    """A pickle with a side effect, which it has when somebody reads it."""
    content = pickle.dumps(Bomb(mark))
    pickle.loads(content)
    assert mark.exists()
    mark.unlink()
    return content


def test_our_source_reads_no_pickle_and_runs_no_text() -> None:
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path}: import {name}" for name in names if name.split(".")[0] in forbidden]
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if called in ("eval", "exec", "yaml.load", "os.system", "np.load") or (
                        called == "torch.load" and options.get("weights_only") != "True"):
                    found.append(f"{path}, line {node.lineno}: {called}")
                if "True" in (options.get("shell"), options.get("trust_remote_code")):
                    found.append(f"{path}, line {node.lineno}: {called} with a shell, or with a model's code")
    assert found == []


def test_pickled_weights_of_a_model_are_not_read(tmp_path: Path, bomb: bytes, mark: Path) -> None:
    folder = Path(shutil.copytree(TOY / "lm", tmp_path / "lm"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(ModelError, match="no safetensors"):
        models.find(str(folder), tmp_path)
    with pytest.raises(ModelError):
        load_policy(folder, device="cpu")
    torch.save({"x": Bomb(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load_policy(folder, device="cpu")
    assert not mark.exists()


def test_pickled_weights_of_an_sae_are_not_read(tmp_path: Path, bomb: bytes, mark: Path) -> None:
    folder = Path(shutil.copytree(TOY / "sae", tmp_path / "sae"))
    (folder / "sae_weights.safetensors").rename(folder / "sae.pt")
    (folder / "sae.pt").write_bytes(bomb)
    with pytest.raises(ModelError, match="no SAE"):
        sae_spec.read_spec(folder)
    (folder / "sae_weights.safetensors").write_bytes(bomb)
    with pytest.raises(ModelError):
        load_sae(folder, torch.device("cpu"), torch.float32)
    assert not mark.exists()


def test_pickles_among_data_results_and_records_are_not_read(tmp_path: Path, bomb: bytes, mark: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.pkl").write_bytes(bomb)
    source = build_config({"data": {"path": "data"}, "features": {"model": "m", "sae": "s"}, "policy": {"model": "m"}},
                          tmp_path).data
    with pytest.raises(SaerlError, match=r"rows\.pkl: unknown kind"):
        find_files(source, tmp_path)
    for place in ("results/x", "published/x.json", "artifacts/features-0/artifact.json",
                  "runs/r/consumed/step-000001.json"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(bomb)
    gc.find(tmp_path)
    assert published.read_or_none(tmp_path, "x") is None
    with pytest.raises(SaerlError):
        artifact.read_header(tmp_path / "artifacts" / "features-0")
    with pytest.raises(SaerlError):
        consumed_batches(tmp_path / "runs" / "r")
    assert not mark.exists()


def test_code_that_comes_with_a_model_does_not_run(tmp_path: Path, mark: Path) -> None:
    from saerl_core.backbone import load_backbone

    folder = Path(shutil.copytree(TOY / "lm", tmp_path / "lm"))
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {
        "AutoConfig": "configuration_evil.C", "AutoModel": "modeling_evil.M",
        "AutoModelForCausalLM": "modeling_evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tokenization_evil.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for load in (lambda: load_backbone(folder, 1, torch.device("cpu"), torch.float32),
                 lambda: load_policy(folder, device="cpu"), lambda: models.load_tokenizer(folder)):
        with pytest.raises(ModelError) as raised:
            load()
        assert "\n" not in str(raised.value)
    assert not mark.exists()


def test_trust_remote_code_is_off_unless_the_config_asks_for_it() -> None:
    config = build_config({"data": {"path": "d"}, "features": {"model": "m", "sae": "s"}, "policy": {"model": "m"}},
                          Path())
    assert not config.features.trust_remote_code
    assert not config.policy.trust_remote_code


def test_compose_publishes_on_loopback_only() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    ports = [str(port) for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert [name for name, service in services.items() if service.get("privileged") or
            service.get("network_mode") == "host"] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        with faults.server(tmp_path_factory.getbasetemp() / "server-home") as url:
            yield url


def test_a_curation_listens_on_loopback_only(tmp_path: Path) -> None:
    case = faults.Case(tmp_path / "case", None)  # with a server of its own
    run = case.start("curate", str(case.config))
    heard: set[str] = set()
    while run.poll() is None:
        heard |= addresses_heard(case.processes())
        time.sleep(0.2)
    run.communicate()
    assert run.returncode == 0, case.log.read_text()
    assert heard == {"127.0.0.1"}


def test_no_secret_of_the_environment_is_written_down_by_a_curation(
        tmp_path: Path, server: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    case = faults.Case(tmp_path / "case", server)
    tree = yaml.safe_load(case.config.read_text())
    tree["labels"]["server"] = {"url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "SAERL_TEST_API_KEY"}
    case.config.write_text(yaml.safe_dump(tree))
    case.environment |= SECRETS
    case.finish("curate", str(case.config))
    case.finish("check", str(case.config))
    assert holding_secrets(tmp_path) == []
    assert holding_secrets(tmp_path_factory.getbasetemp() / "server-home") == []


def test_no_secret_of_the_environment_is_written_down_by_a_training(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saerl_core.rl.job import build_job
    from saerl_core.rl.launch import run_job

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    policy = save_tiny_policy(tmp_path / "policy")
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\nexec {sys.executable} {ROOT}/tests/rl/stub_trainer.py \"$@\"\n")
    stub.chmod(0o755)
    config = build_config({
        "data": {"path": "unused.jsonl"}, "features": {"model": str(policy), "sae": "unused"},
        "policy": {"model": str(policy), "max_prompt_tokens": 64, "max_response_tokens": 8},
        "train": {"engine": "cpu", "rollouts": 4, "micro_batch_size": 16, "save_every": 2, "python": str(stub)},
        "schedule": {"batch_size": 4, "clusters_per_batch": 2}}, tmp_path)
    job = build_job(config, save_manifest(tmp_path / "manifests", batch_size=4, batches=4),
                    save_heldout(tmp_path / "heldout.parquet", prompts=8), tmp_path / "runs" / "r")
    run_job(job)
    assert job.child_environment()["WANDB_API_KEY"] == SECRETS["WANDB_API_KEY"]  # the trainer does get it
    assert (job.run_dir / "job.json").exists()
    assert holding_secrets(tmp_path) == []


@pytest.mark.parametrize("name", ["../other", "a/b", "..", "/x", "a\\b", ".hidden", "A", ""])
def test_a_runs_name_cannot_be_a_path(name: str) -> None:
    with pytest.raises(ConfigError, match="name = "):
        build_config({"name": name, "data": {"path": "d"}, "features": {"model": "m", "sae": "s"},
                      "policy": {"model": "m"}}, Path())


@pytest.mark.parametrize("name", ["saerl:../../../etc/passwd", "saerl:toy/../../errors.py", "saerl:toy/../../../x",
                                  "saerl:/etc/passwd", "saerl:"])
def test_a_packaged_name_stays_in_the_package(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names nothing that ships"):
        locations.resolve(name, tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_header_that_names_files_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "artifact.json").write_text(json.dumps({"files": {name: {"sha256": "0", "size": 1}}}))
    with pytest.raises(SaerlError, match="outside its own folder"):
        artifact.read_header(folder)
    with pytest.raises(ValueError, match="outside its own folder"):
        ArtifactRef(path=folder, sha256=artifact.file_hash(folder / "artifact.json"), size=0)


def test_export_does_not_write_over_anything(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "manifests", batch_size=4, batches=2)
    for place in (manifest, tmp_path / "manifests", manifest / "train.parquet"):
        with pytest.raises(ConfigError, match="exists already"):
            export(manifest, place, "jsonl")


def test_a_link_among_the_garbage_is_removed_and_what_it_names_is_not(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("x")
    root = tmp_path / "out"
    (root / "manifests").mkdir(parents=True)
    (root / "artifacts").mkdir()
    (root / "artifacts" / "link").symlink_to(outside, target_is_directory=True)
    assert [item.path.name for item in gc.remove(root).garbage] == ["link"]
    assert not (root / "artifacts" / "link").exists()
    assert (outside / "mine.txt").exists()
