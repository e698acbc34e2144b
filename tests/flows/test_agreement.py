"""Answer keys judged by agreement, in a real curation: what is found, what it costs, and what an interruption loses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.curate import curate
from saerl_core.config import RunConfig
from saerl_core.manifest import read_manifest
from saerl_core.rl import rollouts
from tests.flows.conftest import toy_rows, write_rows

SUSPICIOUS: dict[str, Any] = {"labels": {"source": "none"}, "difficulty": {"method": "none"},
                              "schedule": {"batch_size": 8, "clusters_per_batch": None},
                              "quality": {"method": "none", "suspect_answers": 0.15}}


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompts in each call that sampled answers."""
    seen: list[int] = []
    sample = rollouts.sample_texts

    def counting(policy: Any, messages: Any, **settings: Any) -> list[list[str]]:
        seen.append(len(messages))
        return sample(policy, messages, **settings)

    monkeypatch.setattr(rollouts, "sample_texts", counting)
    return seen


def short_rows(count: int) -> list[dict[str, Any]]:
    """Intact prompts of one or two steps, and those with a wrong key."""
    rows = [row for row in toy_rows(2600) if row["level"] <= 2 and row["defect"] in ("", "wrong_key")]
    return rows[:count]


def test_suspected_keys_are_wrong_ones_far_more_often_than_others(world: Callable[..., RunConfig],
                                                                  tmp_path: Path) -> None:
    config = world(**SUSPICIOUS)
    rows = short_rows(400)
    write_rows(tmp_path / "prompts.jsonl", rows)
    made = curate(config)
    header = read_manifest(made.manifest.path)
    report = header["suspicion"]
    assert report["used"], report["why"]
    assert (report["by"], report["looked_at"]) == ("agreement", header["prompts"]["read"] - _not_usable(header))
    wrong = {row["id"] for row in rows if row["defect"] == "wrong_key"}
    dropped = pl.read_parquet(made.manifest.path / "dropped.parquet")
    suspects = dropped.filter(pl.col("reason") == "suspect_answer")["id"].to_list()
    assert len(suspects) == int(report["judged"] * 0.15)
    assert sum(name in wrong for name in suspects) / len(suspects) > 2.5 * len(wrong) / len(rows)


def _not_usable(header: dict[str, Any]) -> int:
    by_reason = header["prompts"]["dropped_by_reason"]
    return sum(by_reason.get(reason, 0) for reason in ("duplicate", "near_duplicate", "too_long", "contaminated"))


def test_an_interruption_loses_one_chunk_and_new_prompts_cost_only_themselves(
        world: Callable[..., RunConfig], tmp_path: Path, answered: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.agreement._CHUNK_PROMPTS", 25)
    config = world(**SUSPICIOUS)
    write_rows(tmp_path / "prompts.jsonl", short_rows(60))
    whole = curate(config.model_copy(update={"workspace": "undisturbed"}))
    assert answered == [25, 25, 10]
    answered.clear()

    class Killed(BaseException):
        pass

    sample = rollouts.sample_texts

    def killed(*arguments: Any, **settings: Any) -> list[list[str]]:
        if len(answered) == 1:
            raise Killed
        return sample(*arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(rollouts, "sample_texts", killed)
        with pytest.raises(Killed):
            curate(config)
    assert answered == [25]
    assert curate(config).id == whole.id
    assert answered == [25, 25, 10]
    answered.clear()
    assert curate(config).id == whole.id
    assert answered == []
    write_rows(tmp_path / "prompts.jsonl", short_rows(65))
    curate(config)
    assert sum(answered) == 5


def test_prompts_that_are_dropped_for_other_reasons_are_not_answered(world: Callable[..., RunConfig], tmp_path: Path,
                                                                     answered: list[int]) -> None:
    settings = {**SUSPICIOUS, "difficulty": {"method": "length"},
                "schedule": {**SUSPICIOUS["schedule"], "max_difficulty": 0.5}}
    config = world(**settings)
    write_rows(tmp_path / "prompts.jsonl", short_rows(60))
    header = read_manifest(curate(config).manifest.path)
    assert header["suspicion"]["looked_at"] == sum(answered) == 60 - header["prompts"]["dropped_by_reason"]["too_hard"]
