"""Room on the disk, before it is needed."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from saerl_core import disk
from saerl_core.errors import ArtifactError
from saerl_core.sae_spec import SaeSpec
from tests.conftest import TOY

Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_one_line_that_says_how_much_and_what_to_do(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 5 * 10**6))
    disk.require(tmp_path / "not" / "yet", 5 * 10**6, "the features")
    with pytest.raises(ArtifactError, match=r"the features may take 5\.1 MB, 5\.0 MB are free: .*saerl gc") as caught:
        disk.require(tmp_path / "not" / "yet", 5_100_000, "the features")
    assert "\n" not in str(caught.value)


def test_free_bytes_are_those_of_the_disk_that_will_hold_the_folder(tmp_path: Path) -> None:
    assert disk.free_bytes(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)


def test_three_checkpoints_of_the_toy_are_estimated_from_above_and_not_far_off() -> None:
    written = 13_808_904  # bytes of one checkpoint that verl wrote for the toy
    assert 3 * written <= disk.checkpoint_bytes(TOY / "lm") < 3.3 * written


def test_features_are_bounded_by_the_saes_width() -> None:
    topk = SaeSpec("topk", d_in=8, d_sae=1000, k=10, layer=0, heldout_fvu=None)
    assert disk.feature_bytes(5, 20, topk) == 5 * 200 * 12
    assert disk.feature_bytes(5, 2000, topk) == 5 * 1000 * 12


def test_used_bytes_counts_files_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"x" * 10)
    (tmp_path / "two").write_bytes(b"x" * 5)
    assert disk.used_bytes(tmp_path) == 15
    assert disk.used_bytes(tmp_path / "two") == 5
    assert disk.used_bytes(tmp_path / "nothing") == 0
