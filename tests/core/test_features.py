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
from saerl_core.features import FeatureRows
from tests.core.rows import rows_from_dense


def some_rows(n: int = 6, d: int = 12, seed: int = 0) -> FeatureRows:
    rng = np.random.default_rng(seed)
    return rows_from_dense(rng.random((n, d)) * (rng.random((n, d)) < 0.4))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=12))
def test_taking_rows_agrees_with_dense_indexing(order: list[int]) -> None:
    rows = some_rows()
    assert (features.take(rows, order).matrix().toarray() == rows.matrix().toarray()[order]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_rows_of_several_parts_are_picked_one_by_one(places: list[tuple[int, int]]) -> None:
    parts = [some_rows(n, seed=n) for n in (3, 4, 5)]
    part, row = np.array(places, dtype=np.int64).reshape(-1, 2).T
    picked = features.pick(parts, part, row)
    singly = [features.take(parts[nth], [number]) for nth, number in places] or [features.take(parts[0], [])]
    for name in features.ARRAYS:
        assert np.array_equal(getattr(picked, name), getattr(features.concatenate(singly), name), equal_nan=True)


def test_concatenation_agrees_with_stacking() -> None:
    a, b = some_rows(seed=1), some_rows(n=3, seed=2)
    joined = features.concatenate([a, b]).matrix().toarray()
    assert (joined == np.vstack([a.matrix().toarray(), b.matrix().toarray()])).all()


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
