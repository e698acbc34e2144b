"""Exports: the manifest's rows in the manifest's order, whole, in both formats."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from saerl_core.errors import ArtifactError, ConfigError
from saerl_core.export import export
from saerl_core.manifest import write_manifest
from tests.report.world import make


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _, curation = make(n=200, k=4, batch_size=8, steps=None, hostile=True)
    return write_manifest(tmp_path_factory.mktemp("manifests"), curation, {}, lambda header: {}, b"").path


def expected(manifest: Path) -> list[dict[str, object]]:
    rows = pl.read_parquet(manifest / "train.parquet").to_dicts()
    return [{"answer": row["reward_model"]["ground_truth"], "prompt": row["prompt"],
             **{name: row["extra_info"][name] for name in ("id", "batch", "cluster", "difficulty", "quality")}}
            for row in rows]


def test_json_lines_hold_every_row_in_order(manifest: Path, tmp_path: Path) -> None:
    rows = export(manifest, tmp_path / "out.jsonl", "jsonl")
    read = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == len(read) > 100
    assert [{"prompt" if name == "messages" else name: row[name] for name in row} for row in read] == expected(manifest)
    assert [row["batch"] for row in read] == sorted(row["batch"] for row in read)


def test_a_datasets_folder_holds_every_row_in_order(manifest: Path, tmp_path: Path) -> None:
    import datasets

    export(manifest, tmp_path / "out", "datasets")
    read = datasets.load_from_disk(str(tmp_path / "out"))
    assert list(read) == expected(manifest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_same_manifest_gives_the_same_bytes(manifest: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(manifest, tmp_path / name, "datasets")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("kind", ["jsonl", "datasets"])
def test_what_exists_is_never_overwritten(manifest: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export(manifest, tmp_path / "out", kind)


def test_a_damaged_manifest_is_not_exported(manifest: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(manifest, tmp_path / manifest.name))
    data = bytearray((copy / "train.parquet").read_bytes())
    data[100] ^= 1
    (copy / "train.parquet").write_bytes(data)
    with pytest.raises(ArtifactError, match="changed since it was written"):
        export(copy, tmp_path / "out.jsonl", "jsonl")
    assert not (tmp_path / "out.jsonl").exists()
