from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_core import labels

KEYS = [f"{i:032x}" for i in range(400)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.integers(1, 250), st.integers(0, 3))
def test_every_cluster_is_labelled_in_proportion_to_its_size(numbers: list[int], count: int, seed: int) -> None:
    clusters = np.array(numbers)
    chosen = labels.choose(KEYS[: len(numbers)], clusters, count, seed)
    assert len(chosen) == len(set(chosen.tolist())) == min(count, len(numbers))
    for number in set(numbers):
        exact = (clusters == number).sum() * len(chosen) / len(numbers)
        assert abs((clusters[chosen] == number).sum() - exact) < 1


def test_a_set_that_grows_keeps_nearly_all_of_its_labels() -> None:
    clusters = np.arange(400) % 8
    before = labels.choose(KEYS[:390], clusters[:390], 100, seed=0)
    after = labels.choose(KEYS, clusters, 100, seed=0)
    assert len(set(before.tolist()) & set(after.tolist())) >= 90


def test_measured_pass_rates_are_kept_by_key_and_a_damaged_segment_is_forgotten(tmp_path: Path) -> None:
    labels.write_store(tmp_path, KEYS[:2], [0.25, 0.5])
    labels.write_store(tmp_path, KEYS[2:3], [1.0])
    assert labels.read_store(tmp_path) == {KEYS[0]: 0.25, KEYS[1]: 0.5, KEYS[2]: 1.0}
    first = sorted(tmp_path.iterdir())[0]
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    assert len(labels.read_store(tmp_path)) in (1, 2)
    assert not first.exists()
