"""The Beta posterior of a pass rate, against its prior, against monotony, and against integration by brute force."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_core.posterior import discount, posterior_mean

rates = st.floats(0, 1)
inner_rates = st.floats(0.1, 0.9)
strengths = st.floats(0.5, 50)


@st.composite
def counts(draw: st.DrawFn) -> tuple[float, float]:
    """(successes, trials), not necessarily whole."""
    trials = draw(st.floats(0, 60))
    return draw(st.floats(0, 1)) * trials, trials


def mean(prior: float, successes: float, trials: float, strength: float) -> float:
    return float(posterior_mean(np.array([prior]), np.array([successes]), np.array([trials]), strength)[0])


@given(rates, counts(), strengths)
def test_the_mean_lies_between_what_was_predicted_and_what_was_seen(
    prior: float, count: tuple[float, float], strength: float
) -> None:
    successes, trials = count
    seen = successes / trials if trials else prior
    assert min(prior, seen) - 1e-9 <= mean(prior, successes, trials, strength) <= max(prior, seen) + 1e-9


@given(rates, strengths)
def test_without_trials_the_prior_stays(prior: float, strength: float) -> None:
    assert mean(prior, 0, 0, strength) == pytest.approx(prior)


@given(rates, st.integers(1, 40), st.data(), strengths)
def test_more_successes_never_lower_it(prior: float, trials: int, data: st.DataObject, strength: float) -> None:
    fewer = data.draw(st.integers(0, trials - 1))
    assert mean(prior, fewer, trials, strength) < mean(prior, fewer + 1, trials, strength)


@settings(max_examples=50, deadline=None)
@given(inner_rates, counts(), st.floats(6, 40))
def test_the_mean_equals_a_brute_force_integration(
    prior: float, count: tuple[float, float], strength: float
) -> None:
    successes, trials = count
    right, wrong = strength * prior + successes, strength * (1 - prior) + trials - successes
    # x = sin²(t) takes the spikes off the ends of the density
    t = (np.arange(200_000) + 0.5) * (np.pi / 2 / 200_000)
    x = np.sin(t) ** 2
    log_density = (2 * right - 1) * np.log(np.sin(t)) + (2 * wrong - 1) * np.log(np.cos(t))
    weight = np.exp(log_density - log_density.max())
    assert mean(prior, successes, trials, strength) == pytest.approx(float((weight * x).sum() / weight.sum()), abs=1e-4)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.integers(0, 8)), min_size=1, max_size=20),
       st.floats(0.1, 1))
def test_discounting_equals_a_naive_loop(seen: list[tuple[str, int, int]], decay: float) -> None:
    frame = pl.DataFrame([{"key": key, "step": step, "successes": float(right), "trials": 8}
                          for key, step, right in seen])
    last = max(step for _, step, _ in seen)
    expected: dict[str, tuple[float, float]] = {}
    for key, step, right in seen:
        successes, trials = expected.get(key, (0.0, 0.0))
        weight = decay ** (last - step)
        expected[key] = successes + weight * right, trials + weight * 8
    found = discount(frame, decay)
    assert found["key"].to_list() == sorted(expected)
    for key, successes, trials in found.iter_rows():
        assert (successes, trials) == pytest.approx(expected[key])


def test_a_policy_that_solves_what_was_called_hard_corrects_the_estimate() -> None:
    assert mean(0.1, 8, 8, strength=8) == pytest.approx(0.55)


@pytest.mark.parametrize(("prior", "successes", "trials", "strength"), [
    (1.2, 0, 0, 8), (float("nan"), 0, 0, 8), (0.5, 3, 2, 8), (0.5, -1, 2, 8), (0.5, 1, 2, 0),
])
def test_impossible_counts_are_refused(prior: float, successes: float, trials: float, strength: float) -> None:
    with pytest.raises(ValueError, match=r"prior|successes|strength"):
        mean(prior, successes, trials, strength)


def test_a_decay_outside_its_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="decay"):
        discount(pl.DataFrame({"key": ["a"], "step": [1], "successes": [1.0], "trials": [1]}), 0.0)
