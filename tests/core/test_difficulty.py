from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from saerl_core import difficulty
from saerl_core.config import DifficultyConfig
from saerl_core.difficulty import Labels, Seen
from saerl_core.errors import DataError
from saerl_core.features import FeatureRows
from tests.core.test_probes import world

MANY = 10**9


def labels_of(pass_rate: np.ndarray, rows: np.ndarray | None = None, samples: float = MANY) -> Labels:
    rows = np.arange(len(pass_rate)) if rows is None else rows
    return Labels(rows, pass_rate[rows], np.full(len(rows), samples, dtype=float))


@pytest.mark.parametrize("method", difficulty.LEARNED)
def test_a_learned_proxy_is_measured_on_rows_it_has_not_seen(method: str) -> None:
    rows, pass_rate = world()
    labelled = np.arange(0, 400, 2)
    config = DifficultyConfig(method=method)  # type: ignore[arg-type]  # one of its literals
    score, probe, report = difficulty.estimate(rows, labels_of(pass_rate, labelled), None, None, config)
    assert report.used
    assert probe is not None
    assert report.spearman is not None
    unseen = np.setdiff1d(np.arange(400), labelled)
    assert 0.7 < report.spearman < 1
    assert spearmanr(score[unseen], 1 - pass_rate[unseen])[0] == pytest.approx(report.spearman, abs=0.1)


def test_the_held_out_figure_is_the_correlation_of_the_pairs_that_it_shows() -> None:
    rows, pass_rate = world()
    _, _, report = difficulty.estimate(rows, labels_of(pass_rate), None, None, DifficultyConfig())
    predicted, measured = np.array(report.held_out).T
    assert spearmanr(predicted, measured)[0] == pytest.approx(report.spearman, abs=1e-3)
    assert np.allclose(measured, 1 - pass_rate, atol=1e-4)


def test_shuffled_labels_are_not_used_and_the_report_says_so() -> None:
    rows, pass_rate = world()
    labelled = np.arange(300)
    shuffled = np.random.default_rng(0).permutation(pass_rate)
    score, probe, report = difficulty.estimate(rows, labels_of(shuffled, labelled, samples=8), None, None,
                                               DifficultyConfig())
    assert probe is None
    assert not report.used
    assert "does not beat chance" in report.why
    assert len(np.unique(score[300:])) == 1  # nothing is known of the unlabelled ones


def test_one_pass_rate_for_all_teaches_nothing() -> None:
    rows, _ = world(n=60)
    _, probe, report = difficulty.estimate(rows, labels_of(np.full(60, 0.5)), None, None, DifficultyConfig())
    assert probe is None
    assert report.spearman is None  # not measured, which is not 0
    assert "all 60 labelled prompts have a pass rate of 50%" in report.why


def test_more_labels_than_a_probe_takes_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, pass_rate = world()
    monkeypatch.setattr(difficulty, "_MOST_LABELS", 100)
    score, _, report = difficulty.estimate(rows, labels_of(pass_rate, samples=8), None, None, DifficultyConfig())
    assert report.labels == 100
    assert not np.isnan(score).any()


def naive_read_off(rows: FeatureRows, method: str, level: np.ndarray, nll: np.ndarray) -> np.ndarray:
    dense = rows.matrix().toarray()
    return {
        "active_features": np.array([sum(value > 0 for value in row) for row in dense], float),
        "activation_mass": np.array([sum(row) for row in dense]) * rows.tokens,
        "level": level,
        "nll": nll,
        "length": rows.tokens + rows.masked + rows.cut,
    }[method].astype(float)


@pytest.mark.parametrize("method", ["active_features", "activation_mass", "level", "nll", "length"])
def test_a_proxy_without_labels_is_the_rank_of_what_it_reads_off(method: str) -> None:
    rows, _ = world(n=80)
    rng = np.random.default_rng(0)
    rows = FeatureRows(**{**vars(rows), "tokens": rng.integers(5, 90, 80).astype(np.int32)})
    level, nll = rng.integers(1, 6, 80).astype(float), rng.random(80)
    config = DifficultyConfig(method=method)  # type: ignore[arg-type]  # one of its literals
    plain = difficulty.read_off(rows, config, level, nll)
    assert np.allclose(plain, naive_read_off(rows, method, level, nll), rtol=1e-5)
    score, probe, report = difficulty.estimate(rows, None, plain, None, config)
    assert spearmanr(score, plain)[0] == pytest.approx(1)
    assert ((score > 0) & (score < 1)).all()
    assert probe is None
    assert "no labels to check it against" in report.why


def test_a_proxy_without_labels_is_put_on_the_scale_of_the_labels_that_there_are() -> None:
    rows, pass_rate = world()
    noisy = 1 - pass_rate + 0.1 * np.random.default_rng(0).standard_normal(400)
    labelled = np.arange(100)
    score, _, report = difficulty.estimate(rows, labels_of(pass_rate, labelled), noisy, None,
                                           DifficultyConfig(method="nll"))
    assert report.used
    assert abs(score[100:].mean() - (1 - pass_rate[100:]).mean()) < 0.05


def test_a_proxy_that_points_the_wrong_way_is_not_used() -> None:
    rows, pass_rate = world()
    _, _, report = difficulty.estimate(rows, labels_of(pass_rate), pass_rate, None, DifficultyConfig(method="nll"))
    assert not report.used


def test_rows_without_a_level_count_as_middling() -> None:
    rows, _ = world(n=5)
    plain = difficulty.read_off(rows, DifficultyConfig(method="level"), np.array([1, np.nan, 3, 5, 4.0]), None)
    assert plain.tolist() == [1, 3.5, 3, 5, 4]


def test_levels_that_no_prompt_has_are_told() -> None:
    rows, _ = world(n=3)
    with pytest.raises(DataError, match=r"difficulty\.method is 'level', but no usable prompt has one"):
        difficulty.read_off(rows, DifficultyConfig(method="level"), np.full(3, np.nan), None)


def test_a_label_of_unknown_precision_stands_as_it_is() -> None:
    rows, pass_rate = world()
    score, _, _ = difficulty.estimate(rows, labels_of(pass_rate, np.arange(200), samples=np.inf), None, None,
                                      DifficultyConfig())
    assert np.allclose(score[:200], 1 - pass_rate[:200])


def test_what_was_seen_corrects_no_label_of_unknown_precision_and_is_not_counted_there() -> None:
    rows, pass_rate = world()
    seen = Seen(np.full(400, 8.0), np.full(400, 16.0))
    certain = labels_of(pass_rate, np.arange(200), samples=np.inf)
    _, _, report = difficulty.estimate(rows, certain, None, seen, DifficultyConfig())
    assert report.observed == 200


@pytest.mark.parametrize("method", difficulty.LEARNED)
def test_there_are_never_more_folds_than_labels(method: str) -> None:
    rows, pass_rate = world()
    config = DifficultyConfig.model_validate({"method": method, "folds": 15})
    _, _, report = difficulty.estimate(rows, labels_of(pass_rate, np.arange(12)), None, None, config)
    assert report.labels == 12


def test_own_answers_move_a_prediction_by_their_number() -> None:
    rows, pass_rate = world()
    config = DifficultyConfig(prior_strength=8)
    alone, _, _ = difficulty.estimate(rows, labels_of(pass_rate, np.arange(300), samples=8), None, None, config)
    seen = Seen(np.zeros(400), np.zeros(400))
    seen.trials[350:], seen.successes[350:] = 16, 16
    moved, _, report = difficulty.estimate(rows, labels_of(pass_rate, np.arange(300), samples=8), None, seen, config)
    assert np.allclose(moved[:350], alone[:350])
    assert np.allclose(1 - moved[350:], (8 * (1 - alone[350:]) + 16) / 24)
    assert report.observed == 50
    labelled_only = difficulty.estimate(rows, labels_of(pass_rate, np.arange(300), samples=8), None, None,
                                        DifficultyConfig(prior_strength=1e-6))[0]
    assert np.allclose(labelled_only[:300], 1 - pass_rate[:300], atol=1e-4)


def test_without_labels_and_with_nothing_seen_all_count_as_equally_hard() -> None:
    rows, _ = world(n=30)
    score, probe, report = difficulty.estimate(rows, None, None, None, DifficultyConfig())
    assert (score == 0.5).all()
    assert probe is None
    assert not report.used
