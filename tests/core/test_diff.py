"""What changed between two manifests: real folders, written by the manifest stage's own writer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from saerl_core.diff import EXAMPLES, diff
from saerl_core.errors import ArtifactError
from saerl_core.manifest import Curation, write_manifest
from saerl_core.schedule import Schedule
from tests.report import world

Write = Callable[..., Path]


@pytest.fixture
def made() -> tuple[dict[str, Any], Curation]:
    return world.make(n=400, k=5, batch_size=8, steps=12)


@pytest.fixture
def write(tmp_path: Path, made: tuple[dict[str, Any], Curation]) -> Write:
    """Write a manifest; some fields of the header changed."""
    def write(curation: Curation | None = None, **changes: Any) -> Path:
        header, same = made
        kept = {name: header[name] for name in ("inputs", "settings", "clusters", "difficulty", "quality", "suspicion")}
        return write_manifest(tmp_path, curation or same, {**kept, **changes}, lambda _: {}, b"").path

    return write


def test_equal_manifests_are_called_equal(write: Write) -> None:
    found = diff(write(), write())
    assert found["equal"]
    assert found["why"] == "The manifests are equal."
    assert not any(found[kind] for kind in ("inputs", "settings", "libraries", "counts", "figures"))
    assert all(found["prompts"][kind]["total"] == 0 for kind in found["prompts"] if kind != "common")
    assert found["clusters"]["agreement"] == found["order"]["spearman"] == 1


def test_a_prompt_that_is_exchanged_is_told_with_its_reasons_and_the_setting_that_changed(
        write: Write, made: tuple[dict[str, Any], Curation]) -> None:
    header, curation = made
    out, unused = int(curation.schedule.batches[0, 0]), curation.table["drop_reason"].to_list().index("beyond_steps")
    reasons = curation.table["drop_reason"].to_list()
    reasons[out], reasons[unused] = "beyond_steps", None
    batches = np.where(curation.schedule.batches == out, unused, curation.schedule.batches)
    other = replace(curation, schedule=Schedule(batches, curation.schedule.epoch, {}),
                    table=curation.table.with_columns(drop_reason=pl.Series(reasons, dtype=pl.String)))
    settings = {**header["settings"], "schedule": {**header["settings"]["schedule"], "seed": 7}}
    found = diff(write(), write(other, settings=settings))
    assert found["settings"] == [{"name": "schedule.seed", "a": 0, "b": 7}]
    assert found["why"] == "Settings changed: schedule.seed."
    assert found["prompts"]["left_out"] == {"total": 1, "examples": [
        {"id": f"row-{out}", "reason_a": None, "reason_b": "beyond_steps"}]}
    assert found["prompts"]["taken_up"]["examples"] == [
        {"id": f"row-{unused}", "reason_a": "beyond_steps", "reason_b": None}]
    assert found["order"] == {"prompts": 95, "spearman": 1.0}


def test_new_and_gone_prompts_are_known_by_their_key_wherever_they_stand(
        write: Write, made: tuple[dict[str, Any], Curation]) -> None:
    header, curation = made
    lost = np.flatnonzero(curation.table["drop_reason"].is_not_null())[:10]
    keys = curation.table["key"].to_list()
    for row in lost:
        keys[row] = f"new-{row}"
    order = np.random.default_rng(0).permutation(curation.table.height)
    place = np.argsort(order)
    other = Curation(curation.table.with_columns(key=pl.Series(keys))[order], curation.cluster[order],
                     curation.difficulty[order], curation.quality[order], curation.pass_rate[order],
                     replace(curation.schedule, batches=place[curation.schedule.batches]))
    inputs = {**header["inputs"], "data": {"name": "toy", "sha256": "ff" * 32}}
    found = diff(write(), write(other, inputs=inputs))
    assert (found["prompts"]["came"]["total"], found["prompts"]["went"]["total"]) == (10, 10)
    assert len(found["prompts"]["came"]["examples"]) == EXAMPLES
    assert found["prompts"]["common"] == 390
    assert found["why"] == "Inputs changed: data (10 prompts are new, 10 are gone)."
    moved = ("left_out", "taken_up", "other_reason", "other_cluster", "other_batch")
    assert all(found["prompts"][kind]["total"] == 0 for kind in moved)


def test_other_numbers_for_the_same_clusters_are_no_change(write: Write, made: tuple[dict[str, Any], Curation]) -> None:
    _, curation = made
    renamed = np.where(curation.cluster >= 0, (curation.cluster + 2) % 5, -1).astype(np.int32)
    moved = np.flatnonzero(curation.cluster == 1)[:3]
    renamed[moved] = (2 + 2) % 5
    found = diff(write(), write(replace(curation, cluster=renamed)))
    assert found["prompts"]["other_cluster"]["total"] == 3
    assert 0.9 < found["clusters"]["agreement"] < 1
    assert "the same, yet the contents differ" in found["why"]


def test_copies_of_one_prompt_are_told_apart(write: Write, made: tuple[dict[str, Any], Curation]) -> None:
    _, curation = made
    keys = curation.table["key"].to_list()
    for copy, row in zip(np.flatnonzero(curation.table["drop_reason"] == "duplicate"), curation.schedule.batches[0],
                         strict=False):
        keys[copy] = keys[row]
    same = replace(curation, table=curation.table.with_columns(key=pl.Series(keys)))
    found = diff(write(same), write(same, settings={}))
    assert found["prompts"]["common"] == 400
    assert all(found["prompts"][kind]["total"] == 0 for kind in found["prompts"] if kind != "common")
    assert found["order"]["prompts"] == 96


def test_the_order_is_compared_as_scipy_does(write: Write, made: tuple[dict[str, Any], Curation]) -> None:
    _, curation = made
    shuffled = np.random.default_rng(3).permutation(curation.schedule.batches.ravel())
    other = replace(curation, schedule=replace(curation.schedule, batches=shuffled.reshape(-1, 8)))
    found = diff(write(), write(other))
    rows = curation.schedule.batches.ravel()
    expected, _ = spearmanr(np.arange(96), np.argsort(shuffled)[np.searchsorted(np.sort(shuffled), rows)])
    assert found["order"]["spearman"] == pytest.approx(expected, abs=1e-6)
    batch = np.repeat(np.arange(12), 8)
    moved = (batch[np.argsort(rows)] != batch[np.argsort(shuffled)]).sum()
    assert found["prompts"]["other_batch"]["total"] == moved


def test_a_damaged_manifest_is_refused(write: Write) -> None:
    sound, damaged = write(), write(settings={})
    (damaged / "scores.parquet").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"scores\.parquet: 0 bytes"):
        diff(sound, damaged)
