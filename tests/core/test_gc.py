"""What nothing refers to is found and removed; what anything refers to stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from saerl_core import artifact, gc, locks, published
from saerl_core.errors import ArtifactError
from saerl_core.published import Run

RUN = Run(flow_run_id="f", name="curate · toy", target="toy", at="2026-01-01T00:00:00+00:00")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Two manifests that share an artifact, a training run, and a cached result of each stage."""
    root = tmp_path / "out"
    for folder in ("artifacts/prompts-1", "artifacts/prompts-2", "artifacts/shared-3", "artifacts/heldout-4",
                   "manifests/aaaa", "manifests/bbbb", "runs/toy-cccc"):
        (root / folder).mkdir(parents=True)
        (root / folder / "file").write_bytes(b"x" * 100)
    for segment in ("features/store/1.safetensors", "features/store/2.safetensors"):
        (root / segment).parent.mkdir(parents=True, exist_ok=True)
        (root / segment).write_bytes(b"x" * 1000)
    for number, path in enumerate(("artifacts/prompts-1", "artifacts/prompts-2", "features/store/2.safetensors")):
        (root / "results").mkdir(exist_ok=True)
        inner = json.dumps({"__class__": "ArtifactRef", "data": {"segments": [{"path": str(root / path)}]}})
        (root / "results" / f"stage-{number}").write_text(json.dumps({"metadata": {}, "result": inner}))
    note(root, "aaaa", "artifacts/prompts-1", "artifacts/shared-3", "features/store/1.safetensors")
    note(root, "bbbb", "artifacts/prompts-2", "artifacts/shared-3", "features/store/2.safetensors")
    note(root, "toy-cccc", "artifacts/heldout-4")
    return root


def note(root: Path, name: str, *parts: str) -> None:
    published.note(root, name, [root / part for part in parts], RUN)


def names(found: gc.Findings, root: Path) -> set[str]:
    return {item.path.relative_to(root).as_posix() for item in found.garbage}


def test_nothing_is_garbage_while_manifests_and_runs_refer_to_all_of_it(workspace: Path) -> None:
    found = gc.find(workspace)
    assert (found.garbage, found.notes) == ((), ())
    assert found.kept_bytes > 2700


def test_what_only_a_deleted_manifest_referred_to_goes_and_no_more(workspace: Path) -> None:
    shutil.rmtree(workspace / "manifests/bbbb")
    expected = {"artifacts/prompts-2", "features/store/2.safetensors", "published/bbbb.json", "results/stage-1",
                "results/stage-2"}
    found = gc.find(workspace)
    assert names(found, workspace) == expected
    assert {item.bytes for item in found.garbage if item.kind == "features"} == {1000}
    assert (workspace / "artifacts/prompts-2").exists()  # finding removes nothing
    before = {path for path in workspace.rglob("*") if path.is_file()}
    removed = gc.remove(workspace)
    assert names(removed, workspace) == expected
    after = {path for path in workspace.rglob("*") if path.is_file()} - {workspace / locks.IN_USE}
    assert {path.relative_to(workspace).as_posix() for path in before - after} == {
        "artifacts/prompts-2/file", *(expected - {"artifacts/prompts-2"})}
    assert gc.find(workspace).garbage == ()


def test_leftovers_of_dead_writers_drafts_and_broken_results_go_and_those_of_the_living_stay(workspace: Path) -> None:
    dead = artifact.temporary_name("x").replace(f"-{os.getpid()}-", "-999999999-")
    (workspace / "artifacts" / dead).mkdir()
    alive = workspace / "artifacts" / artifact.temporary_name("y")
    alive.mkdir()
    (workspace / "published").mkdir(exist_ok=True)
    being_written = workspace / "published" / artifact.temporary_name("z.json")
    being_written.write_text("{half")
    (workspace / "runs/draft").mkdir()
    (workspace / "results/stage-9").write_text("{half")
    assert names(gc.remove(workspace), workspace) == {f"artifacts/{dead}", "runs/draft", "results/stage-9"}
    assert alive.exists()
    assert being_written.exists()


def test_nothing_is_removed_while_a_run_uses_the_workspace(workspace: Path) -> None:
    shutil.rmtree(workspace / "manifests/bbbb")
    with locks.in_use(workspace), pytest.raises(ArtifactError, match="a run is using this workspace"):
        gc.remove(workspace)
    assert (workspace / "artifacts/prompts-2").exists()


def test_a_manifest_of_unknown_making_keeps_every_artifact_and_says_so(workspace: Path) -> None:
    shutil.rmtree(workspace / "manifests/bbbb")
    (workspace / "published/aaaa.json").unlink()
    found = gc.find(workspace)
    assert names(found, workspace) == {"published/bbbb.json"}
    assert "aaaa has no record" in found.notes[0]


def test_a_damaged_record_is_refused_by_gc_and_mended_by_the_next_run(workspace: Path) -> None:
    (workspace / "published/aaaa.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"aaaa\.json: damaged"):
        gc.find(workspace)
    note(workspace, "aaaa", "artifacts/prompts-1")
    record = published.read(workspace, "aaaa")
    assert record is not None
    assert record.made_of == ["artifacts/prompts-1"]


def test_a_folder_that_is_no_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no workspace"):
        gc.find(tmp_path)


def test_a_record_keeps_the_first_run_and_the_last_ones(workspace: Path) -> None:
    for number in range(30):
        published.note(workspace, "aaaa", [], RUN.model_copy(update={"flow_run_id": str(number)}))
    record = published.read(workspace, "aaaa")
    assert record is not None
    assert [run.flow_run_id for run in record.runs] == ["f", *map(str, range(11, 30))]


def test_records_name_the_segment_that_holds_what_was_merged(tmp_path: Path) -> None:
    store = tmp_path / "features" / "store"
    old, new, other = (store / f"{name}.safetensors" for name in ("old", "new", "other"))
    run = published.Run(flow_run_id="1", name="run", target="toy", at="now")
    published.note(tmp_path, "manifest", [old, other], run)
    published.note(tmp_path, "unconcerned", [other], run)
    published.replace(tmp_path, {old: new})
    record = published.read(tmp_path, "manifest")
    assert record is not None
    assert record.made_of == ["features/store/new.safetensors", "features/store/other.safetensors"]
    assert record.runs == [run]
    untouched = published.read(tmp_path, "unconcerned")
    assert untouched is not None
    assert untouched.made_of == ["features/store/other.safetensors"]


def test_no_flipped_bit_of_a_record_goes_unseen(tmp_path: Path) -> None:
    """Each is refused, or changes nothing that is read."""
    run = published.Run(flow_run_id="1", name="curate", target="toy", at="2026-01-01T00:00:00+00:00")
    published.note(tmp_path, "x", [tmp_path / "artifacts" / "prompts-1"], run)
    path, before = tmp_path / published.FOLDER / "x.json", published.read(tmp_path, "x")
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            assert published.read_or_none(tmp_path, "x") in (None, before)
