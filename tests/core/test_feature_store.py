from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from saerl_core import feature_store
from saerl_core.errors import ArtifactError
from tests.core.test_features import some_rows


def keys_of(n: int, start: int = 0) -> list[str]:
    return [feature_store.feature_key([{"role": "user", "content": str(i)}]) for i in range(start, start + n)]


def test_the_store_gives_rows_back_in_any_order_from_any_segment(tmp_path: Path) -> None:
    a, b = some_rows(seed=1), some_rows(seed=2)
    feature_store.write_segment(tmp_path, keys_of(6), a)
    feature_store.write_segment(tmp_path, keys_of(6, start=6), b)
    both = np.vstack([a.matrix().toarray(), b.matrix().toarray()])
    order = [7, 0, 11, 3, 3]
    gathered = feature_store.gather(tmp_path, [keys_of(12)[i] for i in order])
    assert (gathered.matrix().toarray() == both[order]).all()


def test_the_store_is_asked_which_rows_it_lacks(tmp_path: Path) -> None:
    feature_store.write_segment(tmp_path, keys_of(6), some_rows())
    assert set(feature_store.find_rows(tmp_path, keys_of(9))) == set(keys_of(6))
    with pytest.raises(ArtifactError, match="lacks 3 of 9 rows"):
        feature_store.gather(tmp_path, keys_of(9))


def test_a_damaged_segment_is_forgotten_so_that_its_rows_are_read_again(tmp_path: Path) -> None:
    ref = feature_store.write_segment(tmp_path, keys_of(6), some_rows())
    data = bytearray(ref.path.read_bytes())
    data[-1] ^= 1
    ref.path.write_bytes(data)
    assert feature_store.find_rows(tmp_path, keys_of(6)) == {}
    assert not ref.path.exists()


def test_the_same_rows_make_the_same_segment(tmp_path: Path) -> None:
    refs = {feature_store.write_segment(tmp_path, keys_of(6), some_rows()).sha256 for _ in range(2)}
    assert len(refs) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_key_is_of_the_letter_while_a_row_may_move() -> None:
    one, other = ([{"role": "user", "content": text}] for text in ("a b", "a  b"))
    assert feature_store.feature_key(one) != feature_store.feature_key(other)


def scan(store: Path, keys: list[str]) -> dict[str, int]:
    """The naive lookup: every segment, every key; key → active features of its row."""
    found = {}
    for segment in store.glob("*.safetensors"):
        with safe_open(segment, framework="numpy") as file:
            packed, active = file.get_tensor("keys"), np.diff(file.get_tensor("indptr"))
        for row, key in enumerate(packed):
            if bytes(key).hex() in keys:
                found[bytes(key).hex()] = int(active[row])
    return found


def look_up(store: Path, keys: list[str]) -> dict[str, int]:
    found = feature_store.find_rows(store, keys)
    return {key: int(feature_store.read_rows(segment).active()[row]) for key, (segment, row) in found.items()}


def test_the_lookup_follows_a_store_that_grows_and_shrinks(tmp_path: Path) -> None:
    keys = keys_of(30)
    assert look_up(tmp_path, keys) == {}
    refs = []
    for start in (0, 6, 12):
        refs.append(feature_store.write_segment(tmp_path, keys_of(6, start), some_rows(seed=start)))
        assert look_up(tmp_path, keys) == scan(tmp_path, keys)
        assert len(look_up(tmp_path, keys)) == start + 6
    refs[1].path.unlink()
    assert look_up(tmp_path, keys) == scan(tmp_path, keys)
    assert set(look_up(tmp_path, keys)) == set(keys_of(6) + keys_of(6, start=12))


def test_files_are_mapped_as_the_library_reads_them(tmp_path: Path) -> None:
    rows = some_rows(n=50, d=300)
    feature_store.write_rows(tmp_path / "rows.safetensors", rows)
    mapped = feature_store.read_rows(tmp_path / "rows.safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "rows.safetensors")
    for name, array in theirs.items():
        np.testing.assert_array_equal(getattr(mapped, name), array)
        assert getattr(mapped, name).dtype == array.dtype
    assert not mapped.mean.flags.writeable
    assert mapped.d_sae == rows.d_sae


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{broken}", b"\xff" * 40], ids=str)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="not a file of feature rows"):
        feature_store.read_rows(tmp_path / "rows.safetensors")


@pytest.mark.parametrize("killed", [False, True], ids=["", "after a kill before the small ones went"])
def test_compaction_keeps_every_row_once_in_one_segment(tmp_path: Path, killed: bool) -> None:
    keys = keys_of(18)
    for start in (0, 6, 12):
        feature_store.write_segment(tmp_path, keys_of(6, start), some_rows(seed=start))
    before = feature_store.gather(tmp_path, keys)
    merged = feature_store.compact(tmp_path)
    assert len(merged) == 3
    if killed:
        assert len(list(tmp_path.iterdir())) == 4
        assert (feature_store.gather(tmp_path, keys).mean == before.mean).all()
        merged = feature_store.compact(tmp_path)
    feature_store.discard(merged)
    (segment,) = tmp_path.iterdir()
    assert len(feature_store.read_rows(segment)) == 18
    after = feature_store.gather(tmp_path, keys)
    assert (after.matrix().toarray() == before.matrix().toarray()).all()
    assert feature_store.compact(tmp_path) == {}


def test_rows_are_found_while_another_run_compacts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for start in (0, 6, 12):
        feature_store.write_segment(tmp_path, keys_of(6, start), some_rows(seed=start))
    look = feature_store._keys

    def after_a_compaction(segment: Path) -> list[bytes]:
        monkeypatch.undo()
        feature_store.discard(feature_store.compact(tmp_path))
        return look(segment)

    monkeypatch.setattr(feature_store, "_keys", after_a_compaction)
    found = feature_store.find_rows(tmp_path, keys_of(18))
    assert len(found) == 18
    assert {segment for segment, _ in found.values()} == set(tmp_path.iterdir())


def test_large_segments_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feature_store.write_segment(tmp_path, keys_of(12), some_rows(n=12))
    small = [feature_store.write_segment(tmp_path, keys_of(4, start), some_rows(n=4, seed=start)).path
             for start in (12, 16)]
    monkeypatch.setattr(feature_store, "_SMALL_ROWS", 10)
    assert set(feature_store.compact(tmp_path)) == set(small)
