"""The command as a user meets it: one line and exit code 2 for a mistake, JSON and nothing else for a machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.curate import Curated
from saerl_core.manifest import read_manifest
from tests.conftest import ROOT
from tests.flows.conftest import Run, toy_rows, write_config, write_rows


def rows_with(change: dict[str, Any] | None, *, at: int = 2) -> str:
    rows: list[dict[str, Any]] = toy_rows(40)
    if change is not None:
        rows[at] = {**rows[at], **change}
    return "".join(json.dumps(row) + "\n" for row in rows)


BAD_DATA = {
    "missing column": (rows_with(None).replace('"problem"', '"question"'), "no column 'problem' for the prompt"),
    "empty file": ("", "no rows"),
    "broken JSON": (rows_with(None) + '{"id": 1,', "line 41: broken JSON"),
    "duplicate ids": (rows_with({"id": toy_rows(1)[0]["id"]}), "line 3: id = "),
    "empty prompt": (rows_with({"problem": " "}), "line 3: problem is empty"),
    "empty answer": (rows_with({"answer": ""}), "line 3: answer is empty"),
    "fewer rows than a batch": (rows_with(None).split("\n")[0], "schedule.batch_size = 8 is larger than the data"),
}


@pytest.mark.parametrize("case", BAD_DATA)
@pytest.mark.parametrize("command", ["curate", "check"])
def test_bad_data_is_one_line_and_leaves_nothing_behind(saerl: Run, tmp_path: Path, case: str, command: str) -> None:
    content, complaint = BAD_DATA[case]
    config = write_config(tmp_path)
    (tmp_path / "prompts.jsonl").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = saerl(command, config)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
    assert "prompts.jsonl" in err or case == "fewer rows than a batch"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("setting", "complaint"), [
    ("data.path=nowhere.jsonl", "nowhere.jsonl: no such file"),
    ("shedule.seed=1", "unknown key 'shedule'; did you mean 'schedule'?"),
    ("features.layer=99", "features.layer = 99: features.model has 4 layers (0 to 3)"),
    ("features.layer=1", "features.layer = 1: features.sae was trained on layer 2"),
    ("features.model=./nowhere", "nowhere: no model there"),
    ("features.sae=./nowhere", "no SAE in sae-lens's format there"),
    ("features.model=saerl:toy/sae", "no model there"),
    ("policy.model=./nowhere", "nowhere: no model there"),
    ("schedule.batch_size=1000", "schedule.batch_size = 1000 is larger than the data: 60"),
    ("clusters.k=one", "clusters.k = 'one'"),
    ("clusters.previous=nowhere", "nowhere: no such manifest"),
    ("data.preset=gsm9k", "data.preset = 'gsm9k'"),
    ("data.path=hub:nowhere", "expected hub:owner/name"),
    ("data.path=hub:owner/name", "hub:owner/name (split 'train'): the hub does not give this data set"),
    ("data.decontaminate=[{path: nowhere.parquet}]", "nowhere.parquet: no such file"),
    ("hygiene.ngram=0", "hygiene.ngram = 0"),
    ("policy.max_prompt_tokens=100000", "exceed the policy's context of"),
])
def test_a_config_mistake_is_one_line_and_leaves_nothing_behind(saerl: Run, tmp_path: Path, setting: str,
                                                                complaint: str) -> None:
    config = write_config(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = saerl("curate", config, "--set", setting)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_sae_of_another_width_is_refused_before_anything_is_read(saerl: Run, tmp_path: Path,
                                                                    make_sae: Callable[..., Path]) -> None:
    code, _, err = saerl("curate", write_config(tmp_path), "--set", f"features.sae={make_sae('topk', d_in=64)}")
    assert code == 2
    assert "features.sae has d_in 64, features.model has a residual stream of 128" in err


def test_training_without_a_heldout_set_is_refused_at_once(saerl: Run, tmp_path: Path) -> None:
    code, _, err = saerl("run", write_config(tmp_path))
    assert code == 2
    assert "data.heldout is not set" in err


@pytest.mark.parametrize(("setting", "complaint"), [
    ("train.micro_batch_size=7", "train.micro_batch_size = 7: does not divide the"),
    ("train.overrides=[data.shuffle=true]", "'data.shuffle=true' is refused"),
    ("train.gpus=2", "the CPU engine has one worker"),
])
def test_a_mistake_in_the_trainers_settings_shows_before_anything_is_curated(saerl: Run, tmp_path: Path, setting: str,
                                                                             complaint: str) -> None:
    write_rows(tmp_path / "heldout.jsonl", toy_rows(3))
    columns = {"id": "id", "prompt": "problem", "answer": "answer"}
    config = write_config(tmp_path, data={"heldout": {"path": "heldout.jsonl", "columns": columns}},
                          train={"engine": "cpu"})
    before = sorted(tmp_path.rglob("*"))
    code, out, err = saerl("run", config, "--set", setting)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
    assert sorted(tmp_path.rglob("*")) == before


def test_check_counts_prompts_and_steps_as_the_run_will(saerl: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, labels={"source": "none"}, difficulty={"method": "length"})
    changes = ("--set", "policy.max_prompt_tokens=40", "--set", "schedule.steps=50", "--set", "schedule.epochs=2")
    told = json.loads(saerl("check", config, *changes, "--json")[1])
    made = json.loads(saerl("curate", config, *changes, "--json")[1])
    header = read_manifest(Path(made["manifest"]))
    assert told["prompts"]["dropped_by_reason"]["too_long"] == header["prompts"]["dropped_by_reason"]["too_long"] > 0
    assert told["batches_at_most"] >= made["batches"] > 1
    for notes in (told["notes"], header["notes"]):
        assert any("schedule.steps = 50, but" in note for note in notes)


@pytest.mark.parametrize("command", ["check", "curate"])
def test_too_few_prompts_are_told_before_any_is_read_with_what_became_of_them(
    saerl: Run, tmp_path: Path, forward_passes: list[int], command: str
) -> None:
    columns = {"id": "id", "prompt": "problem", "answer": "answer"}
    config = write_config(tmp_path, data={"heldout": {"path": "prompts.jsonl", "columns": columns}})
    code, _, err = saerl(command, config)
    assert code == 2
    assert err.splitlines()[-1].endswith("is larger than the data: 0 usable prompts; dropped: 60 contaminated")
    assert forward_passes == []


def test_a_workspace_that_cannot_be_is_refused_at_once(saerl: Run, tmp_path: Path) -> None:
    for command in ("check", "curate"):
        code, _, err = saerl(command, write_config(tmp_path), "--set", "workspace=prompts.jsonl/out")
        assert (code, err.count("\n")) == (2, 1)
        assert "prompts.jsonl is a file; name a folder" in err


def test_fields_list_the_words_that_they_take(saerl: Run) -> None:
    assert "One of: logistic, ridge, mlp, random, none." in " ".join(saerl("fields", "quality.method")[1].split())
    assert json.loads(saerl("fields", "schedule.order", "--json")[1])["schedule.order"]["choices"] == [
        "random", "easy_first", "hard_first"]


def test_a_manifest_is_known_by_its_id_too(saerl: Run, tmp_path: Path) -> None:
    made = json.loads(saerl("curate", write_config(tmp_path, labels={"source": "none"}), "--json")[1])
    assert saerl("manifest", "verify", made["id"])[0] == 0


def test_init_writes_a_config_that_checks_and_does_not_overwrite_it(saerl: Run, tmp_path: Path) -> None:
    assert saerl("init")[0] == 0
    text = (tmp_path / "saerl.yaml").read_text()
    code, _, err = saerl("init")
    assert (code, "exists already" in err) == (2, True)
    assert (tmp_path / "saerl.yaml").read_text() == text
    code, out, _ = saerl("check", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["prompts"]["read"], found["verl"]["engine"]) == (0, True, 2600, "cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saerl.yaml"]


def test_check_accepts_a_gpu_run_of_a_model_that_is_not_here(saerl: Run, tmp_path: Path,
                                                             make_sae: Callable[..., Path]) -> None:
    example = ROOT / "examples" / "qwen2.5-math-1.5b.yaml"
    data = tmp_path / "deepmath.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is {i} + 1?", "final_answer": i + 1, "topic": "sums",
                                        "difficulty": 1}) + "\n" for i in range(200)))
    sae = make_sae("topk", d_in=1536, d_sae=64, hook="blocks.14.hook_resid_post")
    code, out, err = saerl("check", example, "--json", "-s", f"data.path={data}", "-s", "data.heldout=null", "-s",
                           f"features.sae={sae}")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["verl"]["engine"] == "gpu"
    assert any("not on this machine" in note for note in found["notes"])


def test_curate_prints_one_json_object_and_nothing_else_on_stdout(saerl: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, labels={"source": "none"}, quality={"method": "none"})
    code, out, _ = saerl("curate", config, "--json")
    assert code == 0
    outcome = json.loads(out)
    assert outcome["prompts"]["read"] == outcome["prompts"]["kept"] + outcome["prompts"]["dropped"] == 60
    assert outcome["batches"] == outcome["prompts"]["kept"] // 8
    code, out, _ = saerl("manifest", "verify", outcome["manifest"], "--json")
    assert (code, json.loads(out)["intact"]) == (0, True)
    code, _, err = saerl("manifest", "verify", tmp_path)
    assert (code, err.count("\n")) == (2, 1)


def test_a_changed_byte_fails_verification_with_exit_code_2(saerl: Run, curated_once: tuple[Path, Curated],
                                                            tmp_path: Path) -> None:
    import shutil

    manifest = curated_once[1].manifest.path
    copy = Path(shutil.copytree(manifest, tmp_path / manifest.name))
    assert saerl("manifest", "verify", copy)[0] == 0
    page = copy / "report.html"
    page.write_bytes(page.read_bytes().replace(b"e", b"f", 1))
    code, _, err = saerl("manifest", "verify", copy)
    assert code == 2
    assert "report.html: changed since it was written" in err


def test_show_tells_counts_and_what_the_gates_decided(saerl: Run, curated_once: tuple[Path, Curated]) -> None:
    code, out, err = saerl("manifest", "show", curated_once[1].manifest.path)
    assert code == 0
    assert "160 read" in err
    for line in ("difficulty: ", "quality: ", "hygiene: ", "overlap: Mean cosine"):
        assert f"\n  {line}" in err
    assert "report.html" in out


def test_diff_names_what_changed_and_why(saerl: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, labels={"source": "none"}, quality={"method": "none"})
    first, second = (json.loads(saerl("curate", config, "--json", "-s", f"schedule.seed={seed}")[1])["manifest"]
                     for seed in (0, 1))
    code, out, err = saerl("manifest", "diff", first, second)
    assert (code, out) == (0, "Settings changed: schedule.seed.\n")
    assert "schedule.seed: 0 → 1" in err
    assert "in another batch: " in err
    code, out, _ = saerl("manifest", "diff", first, second, "--json")
    assert (code, json.loads(out)["settings"]) == (0, [{"name": "schedule.seed", "a": 0, "b": 1}])
    code, out, _ = saerl("manifest", "diff", first, first)
    assert (code, out) == (0, "The manifests are equal.\n")
    code, out, err = saerl("manifest", "diff", first, tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_export_writes_once_and_says_what_it_wrote(saerl: Run, curated_once: tuple[Path, Curated],
                                                   tmp_path: Path) -> None:
    manifest = curated_once[1].manifest.path
    code, out, _ = saerl("export", manifest, tmp_path / "out.jsonl", "--json")
    assert (code, json.loads(out)["rows"]) == (0, len((tmp_path / "out.jsonl").read_text().splitlines()))
    code, _, err = saerl("export", manifest, tmp_path / "out.jsonl")
    assert (code, "exists already" in err, err.count("\n")) == (2, True, 1)
    code, _, err = saerl("export", manifest, tmp_path / "out.csv", "--format", "csv")
    assert (code, "known: jsonl, datasets" in err) == (2, True)


def test_check_says_what_hygiene_found(saerl: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, data={"decontaminate": [
        {"path": "exam.jsonl", "columns": {"id": "id", "prompt": "problem", "answer": "answer"}, "name": "exam"}]})
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows(3)))
    code, out, _ = saerl("check", config, "--json")
    found = json.loads(out)
    assert (code, found["prompts"]["dropped_by_reason"]["contaminated"]) == (0, 3)
    assert "3 prompts are in exam word for word, 0 nearly so" in found["notes"]


def test_gc_shows_and_removes_and_refuses_a_folder_that_is_no_workspace(saerl: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    code, out, err = saerl("gc", config)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no workspace of SAERL's there" in err
    draft = tmp_path / "saerl-out" / "runs" / "draft"
    draft.mkdir(parents=True)
    (tmp_path / "saerl-out" / "manifests").mkdir()
    (draft / "log").write_text("x" * 2000)
    code, _, err = saerl("gc", config)
    assert (code, draft.exists()) == (0, True)
    assert "2.0 kB  draft      runs/draft" in err
    code, out, _ = saerl("gc", config, "--delete", "--json")
    assert (code, draft.exists()) == (0, False)
    assert [item["kind"] for item in json.loads(out)["garbage"]] == ["draft"]


@pytest.mark.parametrize("command", ["watch", "deploy"])
def test_what_needs_a_server_says_so_in_one_line(saerl: Run, tmp_path: Path, command: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        code, out, err = saerl(command, write_config(tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "set PREFECT_API_URL" in err


def test_a_full_disk_is_told_before_it_is_filled(saerl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    code, out, err = saerl("curate", write_config(tmp_path, labels={"source": "none"}, quality={"method": "none"}))
    assert (code, out) == (2, "")
    assert "the features of 60 prompts may take" in err.splitlines()[-1]
    heldout = f"data.heldout={{path: {tmp_path / 'prompts.jsonl'}, columns: {{prompt: problem}}}}"
    code, out, err = saerl("run", tmp_path / "run.yaml", "-s", heldout)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the checkpoints of the training may take" in err


@pytest.mark.parametrize("command", [
    [], ["init"], ["check"], ["run"], ["curate"], ["train"], ["train-sae"], ["export"], ["serve"], ["deploy"],
    ["watch"], ["gc"], ["manifest", "verify"], ["manifest", "show"], ["manifest", "diff"], ["toy", "build"]])
def test_help_teaches(saerl: Run, command: list[str]) -> None:
    code, out, _ = saerl(*command, "--help")
    assert code == 0
    assert len(out.split()) > 25
