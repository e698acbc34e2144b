from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
