from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from saerl_core.report.calibration import bins, expected_error


def test_bins_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.random(500)
    measured = (rng.random(500) < predicted).astype(float)
    truth, mean = calibration_curve(measured, predicted, n_bins=10)
    found = bins(predicted, measured)
    np.testing.assert_allclose([entry.measured for entry in found], truth)
    np.testing.assert_allclose([entry.predicted for entry in found], mean)
    assert sum(entry.count for entry in found) == 500


def test_intervals_of_zeros_and_ones_are_wilsons() -> None:
    measured = np.array([1.0] * 7 + [0.0] * 5)
    (found,) = bins(np.full(12, 0.55), measured)
    expected = binomtest(7, 12).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-4)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60))
def test_every_prompt_is_in_one_bin_and_intervals_hold_their_mean(pairs: list[tuple[float, float]]) -> None:
    predicted, measured = np.array(pairs).T
    found = bins(predicted, measured)
    assert sum(entry.count for entry in found) == len(pairs)
    for entry in found:
        assert 0 <= entry.low <= entry.measured + 1e-12
        assert entry.measured - 1e-12 <= entry.high <= 1
        assert entry.start - 1e-12 <= entry.predicted <= entry.end + 1e-12
    assert 0 <= expected_error(found) <= 1


def test_a_perfect_prediction_has_no_calibration_error() -> None:
    predicted = np.linspace(0, 1, 50)
    assert expected_error(bins(predicted, predicted)) == pytest.approx(0)
