"""Launching, watching, resuming and ending a job, with a stub in verl's place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from saerl_core.artifact import temporary_name
from saerl_core.errors import ArtifactError, ConfigError, TrainError
from saerl_core.rl import process
from saerl_core.rl.consumed import answers_per_prompt, consumed_batches
from saerl_core.rl.job import VerlJob, build_job
from saerl_core.rl.launch import TrainProgress, run_job
from saerl_core.rl.metrics import read_metrics
from tests.damage import cut, flip
from tests.rl import stub_trainer
from tests.rl.conftest import MakeConfig
from tests.rl.tiny import save_manifest


@pytest.fixture
def job(make_config: MakeConfig, manifest_dir: Path, tmp_path: Path) -> VerlJob:
    """A job of 6 steps of 4 prompts, a checkpoint every 2, one retry."""
    return _stubbed(build_job(make_config(), manifest_dir, None, tmp_path / "run"), tmp_path)


def _stubbed(job: VerlJob, folder: Path, **orders: str) -> VerlJob:
    stub = folder / "python"
    stub.write_text(f"#!/bin/sh\nexec {sys.executable} {stub_trainer.__file__} \"$@\"\n")
    stub.chmod(0o755)
    return job.model_copy(update={"python": str(stub), "environment": {**job.environment, **orders}})


def _ordered(job: VerlJob, **orders: str) -> VerlJob:
    return job.model_copy(update={"environment": {**job.environment, **orders}})


def test_every_step_is_told_and_the_result_points_at_the_policy(job: VerlJob) -> None:
    seen: list[TrainProgress] = []
    result = run_job(job, seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[2].reward_mean == pytest.approx(0.3)
    assert (result.started, result.steps, result.steps_run_now, result.resumed_from) == (True, 6, 6, None)
    assert result.checkpoint == job.checkpoints / "global_step_6" / "actor" / "huggingface"
    assert read_metrics(result.metrics).height == 6


def test_what_was_consumed_is_the_manifest_batch_by_batch(job: VerlJob, manifest_dir: Path) -> None:
    run_job(job)
    expected = {k: [f"p0-{4 * (k - 1) + i}" for i in range(4)] for k in range(1, 7)}
    assert consumed_batches(job.run_dir) == expected
    assert answers_per_prompt(job.run_dir) == {k: [4] * 4 for k in range(1, 7)}


def test_a_finished_job_is_not_started_again(job: VerlJob) -> None:
    first = run_job(job)
    again = run_job(_ordered(job, STUB_DIE_AT="1", STUB_DIE_ALWAYS="1"))
    assert (again.started, again.attempts, again.steps_run_now) == (False, 0, 0)
    assert again.checkpoint == first.checkpoint


def test_a_job_that_dies_is_resumed_from_its_last_checkpoint(job: VerlJob) -> None:
    result = run_job(_ordered(job, STUB_DIE_AT="4"))
    assert (result.attempts, result.resumed_from, result.steps_run_now) == (2, 2, 6)
    metrics = read_metrics(result.metrics)
    assert metrics["step"].to_list() == [1, 2, 3, 4, 5, 6]
    assert metrics["attempt"].to_list() == [1, 1, 3, 3, 3, 3]  # step 3 was run twice; the second time counts


def test_a_job_that_keeps_dying_fails_with_its_last_words(job: VerlJob) -> None:
    with pytest.raises(TrainError) as caught:
        run_job(_ordered(job, STUB_DIE_AT="4", STUB_DIE_ALWAYS="1"))
    message = str(caught.value)
    assert "ValueError: told to die at step 4" in message
    assert str(job.log) in message
    assert "after step 3 of 6, attempt 2" in message
    assert "\n" not in message


def test_a_job_that_never_begins_is_not_retried(job: VerlJob) -> None:
    with pytest.raises(TrainError, match="before its first step: ValueError: told to die at step 1"):
        run_job(_ordered(job, STUB_DIE_AT="1", STUB_DIE_ALWAYS="1"))
    assert len(list(job.metrics.glob("attempt-*.jsonl"))) == 1


def test_a_job_that_leaves_the_manifest_is_stopped(job: VerlJob) -> None:
    with pytest.raises(TrainError, match="step 3 did not train on the manifest's batch 3"):
        run_job(_ordered(job, STUB_SWAP_AT="3", STUB_SLEEP="0.5"))
    assert not (job.checkpoints / "global_step_6").exists()


def test_a_folder_of_another_manifest_is_refused(
    job: VerlJob, make_config: MakeConfig, tmp_path: Path
) -> None:
    run_job(job)
    manifest = save_manifest(tmp_path / "manifests", batch_size=4, batches=6, seed=9)
    other = build_job(make_config(), manifest, None, job.run_dir)
    with pytest.raises(ArtifactError, match=f"belongs to manifest {job.manifest_id}"):
        run_job(other)


def test_a_checkpoint_of_another_manifest_is_gone_on_from_when_it_is_named(
    job: VerlJob, make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(TrainError):
        run_job(_ordered(job, STUB_DIE_AT="4", STUB_DIE_ALWAYS="1"))
    named = job.checkpoints / "global_step_2"
    manifest = save_manifest(tmp_path / "manifests", batch_size=4, batches=6, seed=9)
    other = _stubbed(build_job(make_config(train={"resume_from": str(named)}), manifest, None, tmp_path / "other"),
                     tmp_path)
    assert other.identity != build_job(make_config(), manifest, None, tmp_path / "other").identity
    result = run_job(other)
    assert (result.resumed_from, result.steps_run_now, result.attempts) == (2, 4, 1)
    assert sorted(consumed_batches(other.run_dir)) == [3, 4, 5, 6]
    assert json.loads((other.run_dir / "job.json").read_text())["resumed_from"]["manifest_id"] == job.manifest_id
    assert named.is_dir()


@pytest.mark.parametrize(("change", "complaint"), [
    ({"batch_size": 8}, "batches of 8, this manifest has batches of 4"),
    ({"name": "global_step_6"}, "at step 6, this manifest has 6 batches"),
    ({"name": "elsewhere"}, "is no checkpoint"),
    ({"job": False}, "is no checkpoint"),
    ({"layers": 7}, "a model of 7 x "),
])
def test_a_named_checkpoint_that_does_not_fit_is_refused_in_one_line(
    make_config: MakeConfig, manifest_dir: Path, tmp_path: Path, tiny_policy_dir: Path, change: dict[str, Any],
    complaint: str
) -> None:
    named = tmp_path / "run" / "checkpoints" / change.get("name", "global_step_2")
    model = Path(shutil.copytree(tiny_policy_dir, named / "actor" / "huggingface"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": change.get("layers", 2)}))
    if change.get("job", True):
        (tmp_path / "run" / "job.json").write_text(json.dumps(
            {"manifest": "m", "identity": "i", "batch_size": change.get("batch_size", 4)}))
    with pytest.raises(ConfigError, match=complaint) as caught:
        build_job(make_config(train={"resume_from": str(named)}), manifest_dir, None, tmp_path / "other")
    assert "\n" not in str(caught.value)


def test_a_folder_of_other_settings_is_refused(
    job: VerlJob, make_config: MakeConfig, manifest_dir: Path
) -> None:
    run_job(job)
    other = build_job(make_config(train={"learning_rate": 0.5}), manifest_dir, None, job.run_dir)
    with pytest.raises(ArtifactError, match="other settings"):
        run_job(other)


def test_unknown_checkpoints_are_not_resumed(job: VerlJob) -> None:
    (job.checkpoints / "global_step_2").mkdir(parents=True)
    (job.checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    with pytest.raises(ArtifactError, match="unknown job"):
        run_job(job)


def test_a_half_written_checkpoint_is_dropped(job: VerlJob) -> None:
    with pytest.raises(TrainError):
        run_job(_ordered(job, STUB_DIE_AT="4", STUB_DIE_ALWAYS="1"))
    (job.checkpoints / "global_step_4" / "actor" / "huggingface").mkdir(parents=True)  # no tracker names it
    result = run_job(job)
    assert result.resumed_from == 2
    assert (job.checkpoints / "global_step_4" / "actor" / "huggingface" / "config.json").exists()


DAMAGES = {"flipped": flip, "cut short": cut}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["actor/huggingface/model.safetensors", "actor/optim.pt", "data.pt", "SHA256SUMS"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(job: VerlJob, file: str, damage: str) -> None:
    with pytest.raises(TrainError):
        run_job(_ordered(job.model_copy(update={"retries": 0}), STUB_DIE_AT="5"))
    DAMAGES[damage](job.checkpoints / "global_step_4" / file)
    result = run_job(job)
    assert (result.resumed_from, result.steps_run_now) == (2, 4)


def test_hashes_whose_writer_was_killed_are_written_by_the_next_run(job: VerlJob) -> None:
    with pytest.raises(TrainError):
        run_job(_ordered(job.model_copy(update={"retries": 0}), STUB_DIE_AT="5"))
    last = job.checkpoints / "global_step_4"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    half = temporary_name("SHA256SUMS").replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    (last / "SHA256SUMS").rename(last / half)
    assert run_job(job).resumed_from == 4


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_policy_of_a_finished_job_is_trained_again(job: VerlJob, damage: str) -> None:
    trained = run_job(job).checkpoint / "model.safetensors"
    before = trained.read_bytes()
    DAMAGES[damage](trained)
    again = run_job(job)
    assert (again.started, again.resumed_from, trained.read_bytes()) == (True, 4, before)


@pytest.mark.parametrize("text", ["", "5", "2", "x", "-1"])
def test_a_damaged_note_of_the_last_checkpoint_loses_nothing(job: VerlJob, text: str) -> None:
    with pytest.raises(TrainError):
        run_job(_ordered(job, STUB_DIE_AT="5", STUB_DIE_ALWAYS="1"))
    (job.checkpoints / "latest_checkpointed_iteration.txt").write_text(text)
    assert run_job(job).resumed_from == 4


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_named_checkpoint_that_is_damaged_is_refused_in_one_line(
    job: VerlJob, make_config: MakeConfig, manifest_dir: Path, tmp_path: Path, damage: str
) -> None:
    with pytest.raises(TrainError):
        run_job(_ordered(job, STUB_DIE_AT="5", STUB_DIE_ALWAYS="1"))
    named = job.checkpoints / "global_step_4"
    DAMAGES[damage](named / "actor" / "huggingface" / "config.json")
    with pytest.raises(ConfigError, match=r"train\.resume_from: .*"):
        build_job(make_config(train={"resume_from": str(named)}), manifest_dir, None, tmp_path / "other")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_description_of_a_job_is_refused_in_one_line(job: VerlJob, damage: str) -> None:
    run_job(job)
    DAMAGES[damage](job.run_dir / "job.json")
    with pytest.raises(ArtifactError, match=r"job\.json: .*; delete .* to train afresh"):
        run_job(job)


def test_what_the_callback_raises_ends_the_job(job: VerlJob) -> None:
    def stop(_: TrainProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(_ordered(job, STUB_SLEEP="0.3", STUB_CHILD="1"), stop)
    assert _survivors(job) == []


def test_a_grandchild_is_ended_with_the_job(job: VerlJob) -> None:
    run_job(_ordered(job, STUB_CHILD="1"))
    assert _survivors(job) == []


def test_orphans_of_a_killed_run_are_ended_and_the_job_resumed(job: VerlJob, tmp_path: Path) -> None:
    slow = _ordered(job, STUB_SLEEP="0.4", STUB_CHILD="1")
    (tmp_path / "job.json").write_text(slow.model_dump_json())
    code = """
        import sys
        from pathlib import Path
        from saerl_core.rl.job import VerlJob
        from saerl_core.rl.launch import run_job
        run_job(VerlJob.model_validate_json(Path(sys.argv[1]).read_text()))
    """
    parent = psutil.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "job.json")])
    _wait_for(slow.checkpoints / "global_step_2")
    parent.kill()
    parent.wait()
    orphans = _survivors(slow)
    assert len(orphans) >= 2
    result = run_job(job)
    assert all(not orphan.is_running() for orphan in orphans)
    assert result.resumed_from in (2, 4)
    assert read_metrics(result.metrics)["step"].to_list() == [1, 2, 3, 4, 5, 6]


def test_two_processes_cannot_run_one_job(job: VerlJob) -> None:
    def run_again(_: TrainProgress) -> None:
        run_job(job)

    with pytest.raises(TrainError, match="another process is running this job"):
        run_job(_ordered(job, STUB_SLEEP="0.2"), run_again)


def test_a_missing_interpreter_is_named(job: VerlJob) -> None:
    with pytest.raises(TrainError, match=r"train\.python: no interpreter at /nowhere/python"):
        run_job(job.model_copy(update={"python": "/nowhere/python"}))


def test_nothing_secret_is_written(job: VerlJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run_job(job)
    for file in job.run_dir.rglob("*"):
        assert not file.is_file() or b"hf_secret" not in file.read_bytes()


def test_rays_folder_is_short_and_removed(job: VerlJob) -> None:
    run_job(job)
    command = json.loads((job.run_dir / "job.json").read_text())
    assert command["manifest"] == job.manifest_id
    record = process.new_record()
    Path(record.ray_dir).mkdir()
    try:
        assert len(record.ray_dir) <= 40
    finally:
        process.end(job.run_dir, record)
    assert not Path(record.ray_dir).exists()


def _survivors(job: VerlJob) -> list[psutil.Process]:
    """Living processes that know this run's folder, by their command line or their environment."""
    mine = str(job.run_dir)
    found = []
    for candidate in psutil.process_iter():
        try:
            known = [*candidate.cmdline(), *candidate.environ().values()]
        except psutil.Error:
            continue
        if candidate.pid != psutil.Process().pid and any(mine in text for text in known):
            found.append(candidate)
    return found


def _wait_for(path: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
