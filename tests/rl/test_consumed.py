"""The records that the trainer writes: which prompts a step consumed, and how they were rewarded."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from saerl_core import sealed
from saerl_core.errors import ArtifactError
from saerl_core.rl.consumed import answers_per_prompt, consumed_batches, observed_rewards, rewards_hash


def write(run_dir: Path, step: int, **fields: Any) -> Path:
    path = run_dir / "consumed" / f"step-{step:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"step": step, **fields}))
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write(tmp_path, 2, ids=["a", "c"], keys=["ka", "kc"], answers=[4, 3], rewards=[2.0, 0.0])
    write(tmp_path, 1, ids=["a", "b"], keys=["ka", "kb"], answers=[4, 4], rewards=[1.0, 3.5])
    return tmp_path


def test_rewards_come_back_by_prompt_and_step(run_dir: Path) -> None:
    assert observed_rewards(run_dir).rows() == [
        ("ka", "a", 1, 1.0, 4), ("kb", "b", 1, 3.5, 4), ("ka", "a", 2, 2.0, 4), ("kc", "c", 2, 0.0, 3)]
    assert consumed_batches(run_dir) == {1: ["a", "b"], 2: ["a", "c"]}
    assert answers_per_prompt(run_dir) == {1: [4, 4], 2: [4, 3]}


def test_the_hash_is_that_of_the_records_wherever_they_lie(run_dir: Path, tmp_path: Path) -> None:
    before = rewards_hash(run_dir)
    moved = run_dir.rename(tmp_path.with_name("moved"))
    (moved / "verl.log").write_text("something else")
    assert rewards_hash(moved) == before
    write(moved, 3, ids=["a"], keys=["ka"], answers=[4], rewards=[4.0])
    assert rewards_hash(moved) != before


def test_a_folder_without_records_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="runs/NAME"):
        observed_rewards(tmp_path)


def test_a_record_of_an_older_saerl_has_batches_but_no_rewards(tmp_path: Path) -> None:
    write(tmp_path, 1, ids=["a"], answers=[4])
    assert consumed_batches(tmp_path) == {1: ["a"]}
    with pytest.raises(ArtifactError, match="older SAERL"):
        observed_rewards(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"step": 1}', '{"step": 1, "ids": ["a"], "answers": [1], "rewards": [1]}'])
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, 1)
    path.write_text(text)
    with pytest.raises(ArtifactError, match=path.name):
        observed_rewards(tmp_path)


def test_no_flipped_bit_of_a_record_goes_unseen(tmp_path: Path) -> None:
    """Each is refused, or changes nothing that is read."""
    path = tmp_path / "consumed" / "step-000001.json"
    sealed.write(path, {"step": 1, "ids": ["a", "b"], "keys": ["ka", "kb"], "answers": [4, 4], "rewards": [1.0, 3.5]})
    content, before = path.read_bytes(), observed_rewards(tmp_path)
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with contextlib.suppress(ArtifactError):
                assert observed_rewards(tmp_path).equals(before)
    for length in range(len(content) - 1):  # the last byte ends the line
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError):
            observed_rewards(tmp_path)
