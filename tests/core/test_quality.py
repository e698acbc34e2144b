from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from saerl_core import labels, quality
from saerl_core.config import QualityConfig
from saerl_core.quality import INTACT, Examples


def examples(shift: float, n: int = 200, d: int = 40, kinds: tuple[str, ...] = ("a", "b"), seed: int = 0) -> Examples:
    """Prompts and damaged copies that fire more of their first features."""
    rng = np.random.default_rng(seed)
    both = rng.gamma(1.0, 1.0, (2 * n, d)) * (rng.random((2 * n, d)) < 0.4)
    both[n:, :6] += shift * rng.random((n, 6))
    return Examples(x=sp.csr_array(np.sqrt(both)), good=np.repeat([True, False], n), group=np.tile(np.arange(n), 2),
                    kind=np.array([INTACT] * n + [kinds[i % len(kinds)] for i in range(n)]))


@pytest.mark.parametrize("method", ["logistic", "ridge", "mlp"])
def test_every_probe_tells_damage_apart_and_reports_each_kind(method: str) -> None:
    known = examples(shift=3)
    config = QualityConfig(method=method)  # type: ignore[arg-type]  # one of its literals
    probe, report = quality.fit(known, config)
    assert report.used
    assert probe is not None
    assert set(report.auc_by_kind) == {"a", "b"}
    score = probe.predict(known.x)
    assert score[known.good].mean() > 0.65 > 0.35 > score[~known.good].mean()


def test_the_held_out_figure_is_that_of_the_pairs_that_it_shows_and_of_no_others() -> None:
    known = examples(shift=1)
    _, report = quality.fit(known, QualityConfig())
    score = np.array([value for value, _ in report.held_out])
    good = np.array([kind == INTACT for _, kind in report.held_out])
    assert roc_auc_score(good, score) == pytest.approx(report.auc, abs=2e-3)
    assert len(score) == 2 * 60  # three in ten pairs


@pytest.mark.parametrize("good", [10, 290])
def test_of_a_rare_class_as_large_a_share_is_held_out_as_of_the_other(good: int) -> None:
    x = examples(shift=3, n=150).x
    known = Examples(x=x, good=np.arange(300) < good, group=np.arange(300),
                     kind=np.array([INTACT] * good + ["bad"] * (300 - good)))
    for seed in range(5):
        _, report = quality.fit(known, QualityConfig(labels="rollouts", seed=seed))
        kinds = [kind for _, kind in report.held_out]
        assert (kinds.count(INTACT), kinds.count("bad")) == (0.3 * good, 0.3 * (300 - good))


def test_what_is_shown_of_many_examples_holds_both_classes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_HELD_OUT_SHOWN", 30)
    _, report = quality.fit(examples(shift=1), QualityConfig())
    kinds = [kind for _, kind in report.held_out]
    assert (len(kinds), kinds.count(INTACT)) == (30, 15)


def test_a_prompt_and_its_copy_stay_on_one_side_of_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    known = examples(shift=1)
    fitted: list[int] = []
    original = quality.fit_logistic
    monkeypatch.setattr(quality, "fit_logistic",
                        lambda x, good: (fitted.append(int(good.sum())), fitted.append(int((~good).sum())),
                                         original(x, good))[-1])
    _, report = quality.fit(known, QualityConfig())
    *folds, good, bad = fitted
    assert folds[::2] == folds[1::2]
    assert (good + report.set_aside, bad) == (140, 140)


def test_a_probe_that_does_not_beat_chance_does_not_filter() -> None:
    probe, report = quality.fit(examples(shift=0), QualityConfig())
    assert probe is None
    assert "nothing is filtered" in report.why


def test_a_probe_that_memorises_does_not_filter() -> None:
    config = QualityConfig(labels="column", min_auc=0.5, max_gap=0.1)
    probe, report = quality.fit(examples(shift=0.4, n=120, d=400), config)
    assert report.auc_train is not None
    assert report.auc_train > 0.99
    assert probe is None


def test_own_prompts_that_are_damaged_in_truth_are_not_learned_from_as_good_ones() -> None:
    """A tenth of what passes for good is damaged; a probe that is told so in earnest learns to like it."""
    both, worse = examples(shift=3, n=400, d=300), examples(shift=3, n=400, d=300, seed=1)
    damaged = np.arange(0, 400, 10)
    x = both.x.tolil()
    x[damaged] = worse.x[400 + damaged]
    known = Examples(sp.csr_array(x), both.good, both.group, both.kind)
    (careful, aside), (earnest, none) = (quality.fit(known, QualityConfig()),
                                         quality.fit(known, QualityConfig(labels="column")))
    assert careful is not None
    assert earnest is not None
    assert aside.set_aside > 0 == none.set_aside
    low = careful.predict(known.x) < 0.5
    assert low[damaged].mean() > 0.8 > 0.6 > (earnest.predict(known.x)[damaged] < 0.5).mean()
    assert low[np.setdiff1d(np.arange(400), damaged)].mean() < 0.05


def test_labels_of_single_prompts_are_learned_from_too() -> None:
    both = examples(shift=3)
    known = Examples(both.x, both.good, np.arange(400), np.where(both.good, INTACT, "bad"))
    _, report = quality.fit(known, QualityConfig(labels="column"))
    assert report.used
    assert set(report.auc_by_kind) == {"bad"}


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2])
def test_the_threshold_is_lowered_until_it_spares_the_good_held_out_prompts(share: float) -> None:
    _, report = quality.fit(examples(shift=1), QualityConfig(max_good_dropped=share))
    good = np.array([score for score, kind in report.held_out if kind == INTACT])
    assert report.threshold is not None
    assert (good < report.threshold - 1e-4).mean() <= share
    assert report.threshold == 0.5 or (good < report.threshold + 2e-4).mean() >= share - 1 / len(good)


def test_too_few_known_bad_prompts_are_no_ground_to_filter() -> None:
    both = examples(shift=3)
    few = np.arange(205)
    probe, report = quality.fit(Examples(both.x[few], both.good[few], both.group[few], both.kind[few]), QualityConfig())
    assert probe is None
    assert "200 good and 5 bad" in report.why


def test_the_filter_is_capped_and_says_so() -> None:
    scores = np.linspace(0, 1, 100)
    bad, note = quality.low_quality(scores, 0.1, QualityConfig())
    assert (bad == (scores < 0.1)).all()
    assert note == ""
    bad, note = quality.low_quality(scores, 0.9, QualityConfig(max_drop_share=0.2))
    assert bad.sum() == 20
    assert scores[bad].max() < scores[~bad].min()
    assert "only the worst 20 are dropped" in note


def test_a_share_in_place_of_a_threshold_drops_exactly_that_share() -> None:
    scores = np.random.default_rng(0).random(200)
    bad, note = quality.low_quality(scores, 0.5, QualityConfig(drop_share=0.1))
    assert (bad == (scores < np.sort(scores)[20])).all()
    assert note == ""


def test_shuffled_labels_close_the_gate_whatever_the_method() -> None:
    known = examples(shift=3)
    probe, report = quality.fit(known, QualityConfig(shuffle_labels=True))
    assert quality.fit(known, QualityConfig())[0] is not None
    assert probe is None
    assert report.auc is not None
    assert abs(report.auc - 0.5) < 0.12
    assert (report.good, report.bad) == (200, 200)
    shown = np.array([kind == INTACT for _, kind in report.held_out])
    assert roc_auc_score(shown, [score for score, _ in report.held_out]) == pytest.approx(report.auc, abs=2e-3)


def test_a_filter_by_lot_knows_a_prompts_key_and_the_seed_and_nothing_else() -> None:
    keys = [f"{n:032x}" for n in range(2000)]
    config = QualityConfig(method="random", drop_share=0.1)
    scores, report = quality.by_lot(keys, config)
    assert report.used
    assert "drawn by lot" in report.why
    bad, note = quality.low_quality(scores, report.threshold, config)
    assert (bad.sum(), note) == (200, "")
    assert kstest(scores, "uniform").pvalue > 0.01
    again, _ = quality.by_lot(keys[::-1], config)
    assert (again[::-1] == scores).all()
    other, _ = quality.by_lot(keys, config.model_copy(update={"seed": 1}))
    chosen = np.array([labels.draw(key, config.seed) for key in keys], dtype=np.float64)
    for unrelated in (other, chosen):
        assert abs(np.corrcoef(scores, unrelated)[0, 1]) < 0.08


def test_answers_are_suspected_only_where_what_speaks_against_them_tells_right_from_wrong() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(300)
    wrong = right + 0.5 * rng.random(300)
    knows = quality.suspicion(right, wrong, 300, 400, QualityConfig())
    assert knows.used
    assert knows.auc == pytest.approx(roc_auc_score(np.repeat([0, 1], 300), np.concatenate([right, wrong])), abs=1e-6)
    ignorant = quality.suspicion(right, rng.random(300), 300, 400, QualityConfig())
    assert not ignorant.used
    assert "no answer is suspected" in ignorant.why
    assert not quality.suspicion(right[:5], right[:5] + 1, 5, 5, QualityConfig()).used
