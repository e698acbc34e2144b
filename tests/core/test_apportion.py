from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saerl_core.apportion import apportion


@given(st.integers(0, 10_000), st.lists(st.integers(0, 1000), min_size=1, max_size=50).filter(any))
def test_the_parts_sum_to_the_whole_and_are_off_by_less_than_one(total: int, weights: list[int]) -> None:
    parts = apportion(total, np.array(weights))
    assert parts.sum() == total
    assert (np.abs(parts - total * np.array(weights) / sum(weights)) < 1 + 1e-6).all()


def test_equal_claims_are_served_in_their_order() -> None:
    assert apportion(5, np.ones(3)).tolist() == [2, 2, 1]
