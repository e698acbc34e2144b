"""The real thing: Ray and verl train a tiny policy on the CPU, are killed in the middle, and go on."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil
import pytest
import torch

from saerl_core.errors import ArtifactError
from saerl_core.rl import process
from saerl_core.rl.check import manifest_batches
from saerl_core.rl.checkpoints import last_checkpoint
from saerl_core.rl.consumed import answers_per_prompt, consumed_at, consumed_batches, observed_rewards
from saerl_core.rl.job import VerlJob, build_job
from saerl_core.rl.launch import run_job
from saerl_core.rl.metrics import read_metrics
from saerl_core.rl.rollouts import load_policy, sample_scores
from saerl_core.rl.validations import read_validation, validated_steps, validation_rows
from saerl_core.rl.verl_side.saerl_verifier import is_correct
from tests.outside import SECRETS, addresses_heard, holding_secrets
from tests.rl.conftest import MakeConfig
from tests.rl.tiny import save_manifest, save_tiny_policy, warm_up

pytest.importorskip("verl", reason="verl is not installed (pip install 'saerl[verl]')")
pytestmark = pytest.mark.e2e

_RUN = """
import sys
from pathlib import Path
from saerl_core.rl.job import VerlJob
from saerl_core.rl.launch import run_job
run_job(VerlJob.model_validate_json(Path(sys.argv[1]).read_text()))
"""


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return warm_up(save_tiny_policy(tmp_path_factory.mktemp("policy") / "warm"))


def test_a_job_survives_being_killed_and_follows_its_manifest_throughout(
    make_config: MakeConfig, manifest_dir: Path, heldout_parquet: Path, policy_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    config = make_config({"test_first": True, "test_samples": 2, "test_greedy": True}, {"model": str(policy_dir)})
    answered = tmp_path / "validation.parquet"
    validation_rows(pl.read_parquet(heldout_parquet), config.train).write_parquet(answered)
    job = build_job(config, manifest_dir, answered, tmp_path / "run")

    # Killed after the checkpoint of step 2, while a later step runs; the launcher too, so that orphans remain.
    at = _kill_in_mid_run(job, tmp_path)
    orphans = _processes_of(job)
    assert orphans, "verl should have outlived its launcher"
    assert at >= 2

    # Nobody but this machine can talk to what is left of it, and Ray has written no secret down either.
    record = json.loads((job.run_dir / process.RECORD).read_text())
    members = process.members(job.run_dir, process.ProcessRecord(**record))
    assert addresses_heard(members) == {"127.0.0.1"}
    assert psutil.Process(record["pid"]).environ()["HF_TOKEN"] == SECRETS["HF_TOKEN"]
    assert holding_secrets(Path(record["ray_dir"])) == []

    # The next run ends the orphans, resumes, and finishes.
    result = run_job(job)
    assert [orphan for orphan in orphans if orphan.is_running()] == []
    assert (result.started, result.attempts, result.steps) == (True, 1, 6)
    assert result.resumed_from is not None
    assert 2 <= result.resumed_from <= at
    assert result.steps_run_now == 6 - result.resumed_from

    # Every step trained on the manifest's batch, and on every answer to every prompt of it.
    assert consumed_batches(job.run_dir) == dict(enumerate(manifest_batches(job), start=1))
    assert answers_per_prompt(job.run_dir) == {step: [4, 4, 4, 4] for step in range(1, 7)}

    # One row a step, though some were run twice; sampler and trainer agree.
    metrics = read_metrics(result.metrics).filter(pl.col("step") > 0)
    assert metrics["step"].to_list() == [1, 2, 3, 4, 5, 6]

    # Validated before the first step, every third, and where it was resumed: every row twice sampled and once greedily.
    assert validated_steps(config.train, 6) == [0, 3, 6]
    for step in (0, 3, 6):
        answers = read_validation(job.run_dir, step)
        assert answers["id"].value_counts()["count"].to_list() == [3] * 8
        assert answers["greedy"].sum() == 8
    greedy = read_validation(job.run_dir, 0).filter("greedy")
    chats = pl.read_parquet(heldout_parquet)
    alone = sample_scores(
        load_policy(policy_dir, "cpu"), chats["prompt"].to_list(),
        chats["reward_model"].struct.field("ground_truth").to_list(), score=is_correct, samples=1, temperature=0.0,
        max_response_tokens=8, seed=0)
    assert greedy["reward"].to_list() == alone[:, 0].tolist()

    # The rewards that were written down are those that verl itself says it trained on.
    seen = observed_rewards(job.run_dir).group_by("step").agg(pl.col("successes").sum(), pl.col("trials").sum())
    means = seen.sort("step").select(pl.col("successes") / pl.col("trials")).to_series().to_list()
    assert means == pytest.approx(metrics["reward_mean"].to_list())
    assert max(means) > 0
    assert set(metrics.filter(metrics["heldout_accuracy"].is_not_null())["step"]) == {3, result.resumed_from, 6}
    assert metrics["ppo_kl"].abs().max() < 1e-5  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    assert metrics["entropy"].is_not_null().all()

    # The policy loads, answers, and is not the one that training began with.
    before, after = load_policy(policy_dir, "cpu"), load_policy(result.checkpoint, "cpu")
    assert next(after.model.parameters()).dtype == torch.float32
    correct = sample_scores(
        after, [[{"role": "user", "content": "1+2?"}]], ["1"], score=is_correct, samples=2, temperature=1,
        max_response_tokens=8, seed=0
    )
    assert correct.shape == (1, 2)
    assert after.tokenizer.chat_template == before.tokenizer.chat_template
    assert metrics["grad_norm"].max() > 0  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    pairs = zip(before.model.state_dict().values(), after.model.state_dict().values(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)

    # Done is done; the folder stays this manifest's; nothing is left behind.
    again = run_job(job)
    assert (again.started, again.checkpoint) == (False, result.checkpoint)
    other = save_manifest(tmp_path / "manifests", batch_size=4, batches=6, seed=3)
    with pytest.raises(ArtifactError, match="belongs to manifest"):
        run_job(build_job(config, other, heldout_parquet, job.run_dir))
    assert _processes_of(job) == []
    assert holding_secrets(job.run_dir) == []


def _kill_in_mid_run(job: VerlJob, folder: Path) -> int:
    """Run the job in another process and kill -9 that one once step 2 is saved and another step has been sampled."""
    description = folder / "job.json"
    description.write_text(job.model_dump_json())
    launcher = psutil.Popen([sys.executable, "-c", textwrap.dedent(_RUN), str(description)])
    deadline = time.monotonic() + 600
    while not ((last_checkpoint(job) or 0) >= 2 and consumed_at(job.run_dir, (last_checkpoint(job) or 0) + 1)):
        assert launcher.poll() is None, job.log.read_text()[-3000:]
        assert time.monotonic() < deadline, job.log.read_text()[-3000:]
        time.sleep(0.1)
    launcher.kill()
    launcher.wait()
    for orphan in _processes_of(job):
        with suppress(psutil.NoSuchProcess):
            orphan.suspend()  # a step is short: they would finish the job before it is looked at
    return last_checkpoint(job) or 0


def _processes_of(job: VerlJob) -> list[psutil.Process]:
    """Living processes that know this run's folder: the driver by its command line, Ray by its environment."""
    found = []
    for candidate in psutil.process_iter():
        try:
            known = [*candidate.cmdline(), *candidate.environ().values()]
        except psutil.Error:
            continue
        if candidate.pid != psutil.Process().pid and any(str(job.run_dir) in text for text in known):
            found.append(candidate)
    return found
