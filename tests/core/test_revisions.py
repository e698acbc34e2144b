"""Files, folders and hub data sets by content."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from saerl_core import revisions


def test_touching_a_file_changes_its_look_and_not_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("one\n")
    look, sha256 = revisions.look("rows.jsonl", tmp_path), revisions.content_hash("rows.jsonl", tmp_path)
    os.utime(path, ns=(1, 1))
    assert revisions.look("rows.jsonl", tmp_path) != look
    assert revisions.content_hash("rows.jsonl", tmp_path) == sha256


def test_a_folder_changes_with_any_file_in_it_and_hidden_ones_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a.jsonl").write_text("a\n")
    before = revisions.look("data", tmp_path), revisions.content_hash("data", tmp_path)
    (tmp_path / "data" / ".tmp-1").write_text("half\n")
    assert (revisions.look("data", tmp_path), revisions.content_hash("data", tmp_path)) == before
    (tmp_path / "data" / "b.jsonl").write_text("b\n")
    after = revisions.look("data", tmp_path), revisions.content_hash("data", tmp_path)
    assert after[0] != before[0]
    assert after[1] != before[1]
    (tmp_path / "data" / "b.jsonl").rename(tmp_path / "data" / "c.jsonl")
    assert revisions.content_hash("data", tmp_path) != after[1]


def test_what_is_not_there_has_no_look(tmp_path: Path) -> None:
    assert revisions.look("nowhere", tmp_path) is None
    (tmp_path / "empty").mkdir()
    assert revisions.look("empty", tmp_path) is None


def test_a_hub_data_set_is_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def dataset_info(_: object, name: str, revision: str | None) -> SimpleNamespace:
        asked.append((name, revision))
        return SimpleNamespace(sha="abc" if revision is None else "def")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    assert revisions.is_hub("hub:owner/name")
    assert revisions.look("hub:owner/name", tmp_path) == [["abc"]]
    assert revisions.content_hash("hub:owner/name", tmp_path) != revisions.content_hash("hub:owner/name@v2", tmp_path)
    assert ("owner/name", "v2") in asked


def test_a_hub_that_does_not_answer_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="hub:owner/name: the hub does not answer"):  # the tests are offline
        revisions.look("hub:owner/name", tmp_path)
