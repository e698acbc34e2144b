from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from saerl_core import artifact
from saerl_core.artifact import ArtifactRef
from saerl_core.errors import ArtifactError


def make(root: Path, text: str = "hello") -> ArtifactRef:
    with artifact.staging(root) as staged:
        (staged / "a.txt").write_text(text)
        (staged / "b.txt").write_text("b")
        return artifact.seal(staged, "thing", {"what": "a test"})


def test_the_same_content_has_the_same_name_and_other_content_another(tmp_path: Path) -> None:
    assert make(tmp_path) == make(tmp_path)
    assert make(tmp_path) != make(tmp_path, "other")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_another_run_made_just_before_is_taken_for_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, others = Path.rename, []

    def rename_after_another_run(staged: Path, target: Path) -> Path:
        monkeypatch.undo()
        others.append(make(tmp_path))
        return rename(staged, target)

    monkeypatch.setattr(Path, "rename", rename_after_another_run)
    assert [make(tmp_path)] == others
    artifact.verify(others[0])
    assert len(list(tmp_path.iterdir())) == 1


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with artifact.staging(tmp_path) as staged:
            (staged / "a.txt").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path: Path) -> None:
    dead = tmp_path / artifact.temporary_name("x").replace(f"-{os.getpid()}-", "-4194999-")
    dead.mkdir()
    make(tmp_path)
    assert not dead.exists()


def test_what_another_machine_or_container_writes_is_left_alone_until_it_is_old(tmp_path: Path) -> None:
    foreign = tmp_path / ".tmp-0badcafe-4194999-x"  # no process here has this number
    foreign.mkdir()
    make(tmp_path)
    assert foreign.exists()
    os.utime(foreign, (0, 0))
    make(tmp_path)
    assert not foreign.exists()


def test_runs_that_mend_the_same_artifact_at_the_same_moment_all_get_a_sound_one(tmp_path: Path) -> None:
    together = threading.Barrier(4, timeout=60)

    def mend() -> ArtifactRef:
        with artifact.staging(tmp_path) as staged:
            (staged / "a.txt").write_text("hello")
            (staged / "b.txt").write_text("b")
            together.wait()
            return artifact.seal(staged, "thing", {"what": "a test"})

    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            (make(tmp_path).path / "a.txt").write_text("jello")
            made = [run.result() for run in [pool.submit(mend) for _ in range(4)]]
            assert len(set(made)) == 1
            artifact.verify(made[0])


def test_an_artifact_that_is_moved_away_while_it_is_checked_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = make(tmp_path)
    hash_now = artifact.file_hash

    def hash_as_another_run_moves_it(path: Path) -> str:
        ref.path.rename(tmp_path / "aside")
        return hash_now(path)

    monkeypatch.setattr(artifact, "file_hash", hash_as_another_run_moves_it)
    with pytest.raises(ArtifactError, match=r"artifact\.json: missing"):
        artifact.verify(ref)


def test_two_writes_within_a_tick_of_the_clock_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "_TICK_SECONDS", 60.0)
    file = tmp_path / "file"
    file.write_text("a")
    times, before = file.stat().st_mtime_ns, artifact.file_hash(file)
    file.write_text("b")
    os.utime(file, ns=(times, times))
    assert artifact.file_hash(file) != before


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    ref = make(tmp_path)
    for file in sorted(ref.path.iterdir()):
        original = file.read_bytes()
        for position in range(len(original)):
            changed = bytearray(original)
            changed[position] ^= 1
            file.write_bytes(changed)
            with pytest.raises(ArtifactError):
                artifact.verify(ref)
        file.write_bytes(original)
        artifact.verify(ref)


@pytest.mark.parametrize("damage", ["delete", "truncate", "add", "remove header", "rename"])
def test_a_damaged_artifact_does_not_load_as_a_reference(tmp_path: Path, damage: str) -> None:
    ref = make(tmp_path)
    stored = ref.model_dump_json()
    match damage:
        case "delete":
            (ref.path / "a.txt").unlink()
        case "truncate":
            (ref.path / "a.txt").write_text("")
        case "add":
            (ref.path / "c.txt").write_text("stowaway")
        case "remove header":
            (ref.path / artifact.HEADER).unlink()
        case "rename":
            ref.path.rename(tmp_path / "elsewhere")
    with pytest.raises(ValidationError):
        ArtifactRef.model_validate_json(stored)


def test_a_damaged_artifact_is_replaced_when_it_is_made_again(tmp_path: Path) -> None:
    ref = make(tmp_path)
    (ref.path / "a.txt").write_text("damaged")
    assert make(tmp_path) == ref
    artifact.verify(ref)


def test_the_header_lists_the_files_and_says_nothing_of_time(tmp_path: Path) -> None:
    header = json.loads((make(tmp_path).path / artifact.HEADER).read_text())
    assert set(header) == {"what", "files"}
    assert set(header["files"]) == {"a.txt", "b.txt"}


def test_threads_that_write_one_file_at_once_leave_one_of_their_versions(tmp_path: Path) -> None:
    versions = [bytes([number]) * 10_000 for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(25):
            list(pool.map(lambda data: artifact.write_file(tmp_path / "file", data), versions))
            assert (tmp_path / "file").read_bytes() in versions
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
