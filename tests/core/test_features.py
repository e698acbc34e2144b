from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_core import extract, features
from saerl_core.config import FeaturesConfig
from saerl_core.errors import ArtifactError
from saerl_core.features import FeatureRows
from tests.core.rows import rows_from_dense


def some_rows(n: int = 6, d: int = 12, seed: int = 0) -> FeatureRows:
    rng = np.random.default_rng(seed)
    return rows_from_dense(rng.random((n, d)) * (rng.random((n, d)) < 0.4))


def keys_of(n: int, start: int = 0) -> list[str]:
    return [features.feature_key([{"role": "user", "content": str(i)}]) for i in range(start, start + n)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_taking_rows_agrees_with_dense_indexing(order: list[int]) -> None:
    rows = some_rows()
    assert (features.take(rows, order).matrix().toarray() == rows.matrix().toarray()[order]).all()


def test_concatenation_agrees_with_stacking() -> None:
    a, b = some_rows(seed=1), some_rows(n=3, seed=2)
    joined = features.concatenate([a, b]).matrix().toarray()
    assert (joined == np.vstack([a.matrix().toarray(), b.matrix().toarray()])).all()


def test_the_store_gives_rows_back_in_any_order_from_any_segment(tmp_path: Path) -> None:
    a, b = some_rows(seed=1), some_rows(seed=2)
    features.write_segment(tmp_path, keys_of(6), a)
    features.write_segment(tmp_path, keys_of(6, start=6), b)
    both = np.vstack([a.matrix().toarray(), b.matrix().toarray()])
    order = [7, 0, 11, 3, 3]
    gathered = features.gather(tmp_path, [keys_of(12)[i] for i in order])
    assert (gathered.matrix().toarray() == both[order]).all()


def test_the_store_is_asked_which_rows_it_lacks(tmp_path: Path) -> None:
    features.write_segment(tmp_path, keys_of(6), some_rows())
    assert set(features.find_rows(tmp_path, keys_of(9))) == set(keys_of(6))
    with pytest.raises(ArtifactError, match="lacks 3 of 9 rows"):
        features.gather(tmp_path, keys_of(9))


def test_a_damaged_segment_is_forgotten_so_that_its_rows_are_read_again(tmp_path: Path) -> None:
    ref = features.write_segment(tmp_path, keys_of(6), some_rows())
    data = bytearray(ref.path.read_bytes())
    data[-1] ^= 1
    ref.path.write_bytes(data)
    assert features.find_rows(tmp_path, keys_of(6)) == {}
    assert not ref.path.exists()


def test_the_same_rows_make_the_same_segment(tmp_path: Path) -> None:
    refs = {features.write_segment(tmp_path, keys_of(6), some_rows()).sha256 for _ in range(2)}
    assert len(refs) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_key_is_of_the_letter_while_a_row_may_move() -> None:
    one, other = ([{"role": "user", "content": text}] for text in ("a b", "a  b"))
    assert features.feature_key(one) != features.feature_key(other)


@pytest.mark.parametrize(("dense", "warning"), [
    (np.eye(4, 1000), "looks collapsed"),
    (np.ones((4, 10)), "hardly tells these prompts apart"),
    (np.array([[1.0, 0], [0, 0]]), "1 prompts fire no feature"),
])
def test_health_warns_of_an_sae_that_sees_too_little(dense: np.ndarray, warning: str) -> None:
    assert any(warning in text for text in features.health(rows_from_dense(dense)).warnings)


def test_health_warns_where_many_prompts_are_far_from_the_sae() -> None:
    rows = some_rows(n=50)
    far = replace(rows, fvu=np.where(np.arange(50) < 10, 0.3, 0.1).astype(np.float32))
    assert features.health(far).far_share == 0.2
    assert any("over 20% of the residual variance unexplained in 20%" in text for text in features.health(far).warnings)
    assert features.health(far, heldout_fvu=0.16).warnings == ()  # it is no better on its own text


def test_rows_that_could_not_be_measured_are_left_out_of_the_figure() -> None:
    rows = replace(some_rows(n=50), fvu=np.full(50, np.nan, np.float32))
    figures = features.health(rows)
    assert (figures.fvu_prompts, figures.fvu_quantiles, figures.warnings) == (0, (), ())


@given(st.lists(st.integers(0, 300), min_size=1, max_size=80))
def test_the_histogram_counts_every_prompt_in_about_twenty_bins(active: list[int]) -> None:
    histogram = features._histogram(np.array(active))
    edges, counts = histogram["edges"], histogram["counts"]
    assert sum(counts) == len(active)
    assert len(edges) == len(counts) + 1 <= 22
    assert counts == [sum(low <= value < high for value in active) for low, high in itertools.pairwise(edges)]


def test_a_collapsed_sae_is_warned_of(tiny_reader: Path, make_sae: Callable[..., Path]) -> None:
    import safetensors.torch

    folder = make_sae("topk", d_sae=1024, k=4)
    weights = safetensors.torch.load_file(folder / "sae_weights.safetensors")
    weights["b_enc"][:4] += 1e4  # the same four features win on every token
    safetensors.torch.save_file(weights, folder / "sae_weights.safetensors")
    config = FeaturesConfig(model="x", sae="y", device="cpu")
    reader, sae = extract.load_reader(tiny_reader, folder, 1, config)
    prompts = [[{"role": "user", "content": f"{i} + {i * i}?"}] for i in range(20)]
    warnings = features.health(extract.extract(reader, sae, prompts, config)).warnings
    assert any("looks collapsed" in text for text in warnings)
    assert any("hardly tells these prompts apart" in text for text in warnings)


def test_health_is_silent_when_all_is_well() -> None:
    figures = features.health(some_rows(n=50))
    assert figures.warnings == ()
    assert figures.prompts == 50
