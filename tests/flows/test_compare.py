"""A comparison from end to end but for the training itself, for which a stub does what verl does to a job's folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tasks.train
from flows.compare import compare, trainings
from saerl_core.compare.result import Comparison
from saerl_core.config import RunConfig
from saerl_core.errors import TrainError
from saerl_core.rl.metrics import metric_files
from tests.flows.conftest import make_config, toy_rows, write_rows
from tests.rl import stub_trainer

Make = Callable[..., RunConfig]
ARMS = {"vanilla": {}, "saerl": {}}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Comparisons over one workspace, of 4 steps of 8 prompts, evaluated every 2 on 12 held-out problems."""
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\nexec {sys.executable} {stub_trainer.__file__} \"$@\"\n")
    stub.chmod(0o755)
    write_rows(tmp_path / "heldout.jsonl", toy_rows(12, start=1000))
    columns = {"id": "id", "prompt": "problem", "answer": "answer", "level": "level", "subject": "topic"}
    monkeypatch.setattr(tasks.train, "check_job", lambda job: None)  # verl's own takes seconds; tests/rl has it

    def made(arms: dict[str, Any], seeds: tuple[int, ...] = (0, 1), **changes: dict[str, Any]) -> RunConfig:
        sections: dict[str, Any] = {
            "data": {"columns": columns, "heldout": {"path": "heldout.jsonl", "columns": columns}},
            "train": {"python": str(stub), "engine": "cpu", "save_every": 2},
            "evaluation": {"prompts": 12, "samples": 2},
            "schedule": {"steps": 4},
            "compare": {"arms": arms, "seeds": seeds, "evaluate_every": 2},
        }
        merged: Any = {name: {**sections.get(name, {}), **changes.get(name, {})} for name in {**sections, **changes}}
        return make_config(tmp_path, **merged)

    return made


def test_arms_are_set_against_the_baseline_and_what_is_done_is_not_done_again(make: Make) -> None:
    outcome = compare(make(ARMS))
    assert (outcome["trainings"], outcome["trained_now"]) == (4, 4)
    report = Path(outcome["report"]).read_text()
    assert "saerl" in report
    found = Comparison.model_validate_json(Path(outcome["json"]).read_text())
    assert [arm.name for arm in found.arms] == ["vanilla", "saerl"]
    for arm in found.arms:
        assert arm.curve.steps == [0, 2, 4]
        assert [step.mean for step in arm.curve.sampled] == pytest.approx([0, 4 / 12, 8 / 12])
        assert [batch.step for batch in arm.batches] == [1, 2, 3, 4]
        assert all(batch.level is not None and 1 <= batch.level <= 5 for batch in arm.batches)
        assert {run.seed for run in arm.runs} == {0, 1}
        assert len({manifest for run in arm.runs for manifest in run.manifests}) == 2
    vanilla, saerl = found.arms
    assert vanilla.gain is None
    assert saerl.gain is not None
    assert saerl.gain.mean == pytest.approx(0)
    assert vanilla.cost.curation == 0
    assert saerl.cost.curation > 0
    assert saerl.reach.flops_share is not None
    assert saerl.reach.share == pytest.approx(1)
    assert saerl.reach.flops_share > 1
    assert (found.problems, found.samples) == (12, 2)

    assert compare(make(ARMS))["trained_now"] == 0
    more = compare(make({**ARMS, "length": {"seeds": [1]}}))
    assert more["trained_now"] == 1
    assert [arm["final"]["seeds"] for arm in more["arms"]] == [2, 2, 1]


def test_a_comparison_that_was_interrupted_goes_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make({"vanilla": {}}, seeds=(0,))
    monkeypatch.setenv("STUB_DIE_AT", "3")
    monkeypatch.setenv("STUB_DIE_ALWAYS", "1")
    with pytest.raises(TrainError, match="told to die at step 3"):
        compare(config)
    monkeypatch.delenv("STUB_DIE_AT")
    outcome = compare(config)
    assert outcome["trained_now"] == 1
    assert outcome["arms"][0]["curve"]["steps"] == [0, 2, 4]
    (run_dir,) = (config.root / "runs").glob("run-vanilla-0-*")
    last = metric_files(run_dir / "metrics")[-1].read_text().splitlines()
    assert [json.loads(line)["step"] for line in last] == [3, 4]


def test_a_random_filter_drops_as_many_prompts_as_the_probe(make: Make) -> None:
    outcome = compare(make({**ARMS, "random-filter": {}}, seeds=(0,), quality={"count": 60, "drop_share": 0.2}))
    dropped = {arm["name"]: arm["runs"][0]["dropped"].get("low_quality", 0) for arm in outcome["arms"]}
    assert dropped["vanilla"] == 0
    assert dropped["random-filter"] == dropped["saerl"] > 0


def test_a_later_round_reads_and_trains_the_policy_that_the_one_before_it_gave(make: Make) -> None:
    config = make({"vanilla": {}, "again": {"like": "saerl", "rounds": 2}}, seeds=(0,))
    outcome = compare(config)
    again = outcome["arms"][1]
    assert again["curve"]["steps"] == [0, 2, 4]
    assert [batch["step"] for batch in again["batches"]] == [1, 2, 3, 4]
    assert len(set(again["runs"][0]["runs"])) == 2
    second = json.loads((config.root / "manifests" / again["runs"][0]["manifests"][1] / "manifest.json").read_text())
    assert second["batches"] == 2


def test_seeds_come_one_after_the_other_with_all_arms_of_each(make: Make) -> None:
    config = make({"saerl": {}, "vanilla": {}, "length": {"seeds": [1]}})
    assert list(trainings(config)) == [("vanilla", 0), ("saerl", 0), ("vanilla", 1), ("saerl", 1), ("length", 1)]
