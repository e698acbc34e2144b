from __future__ import annotations

import polars as pl

from saerl_core.manifest import Curation
from saerl_core.report.markdown import SIZE
from saerl_core.report.training import training_markdown, training_page
from tests.report import world
from tests.report.test_page import check


def batch_difficulty(curation: Curation) -> list[float]:
    return curation.difficulty[curation.schedule.batches].mean(axis=1).tolist()


def test_a_finished_run() -> None:
    metrics, result = world.training()
    _, curation, _ = world.make(n=1400, k=8)
    text = training_page(metrics, result, batch_difficulty(curation))
    reading = check(text)
    assert reading.tags.count("svg") == 11
    words = " ".join(reading.text.split())
    assert "went from 24.2% to 38.1%: +13.9 points (95% interval +12.1 to +15.7)." in words
    assert "Mean predicted difficulty of the batch" in words
    assert "Worth knowing" not in words


def test_a_running_one_shows_what_there_is() -> None:
    metrics, _ = world.training(12)
    metrics = metrics.select("step", "reward_mean", pl.lit(None, pl.Float64).alias("entropy"), kl="ppo_kl")
    reading = check(training_page(metrics, {"steps": 100}))
    words = " ".join(reading.text.split())
    assert "12 steps done of 100." in words
    assert "KL to the initial policy" in words
    assert "KL to the sampling policy" not in words
    assert "Entropy" not in words
    assert "Accuracy on held-out prompts" not in words


def test_a_run_without_a_step() -> None:
    metrics, _ = world.training()
    for empty in (metrics.clear(), pl.DataFrame()):
        assert "No step has finished yet." in check(training_page(empty, {})).text
        assert "No step has finished yet." in training_markdown(empty, {})


def test_the_last_row_of_a_repeated_step_counts_and_step_zero_has_no_batch() -> None:
    _, curation, _ = world.make(n=600, k=4)
    metrics = pl.DataFrame({"step": [0, 1, 2, 2], "reward_mean": [None, 0.25, 0.9, 0.5],
                            "heldout_accuracy": [0.2, None, None, 0.3]})
    text = " ".join(check(training_page(metrics, {}, batch_difficulty(curation))).text.split())
    assert "reward, first step 0.25" in text.replace("</dt>", "")
    assert "reward, last step 0.50" in text


def test_metrics_that_are_no_numbers_are_told() -> None:
    metrics = pl.DataFrame({"step": [1, 2, 3], "reward_mean": [0.1, 0.2, 0.3],
                            "grad_norm": [1.0, float("nan"), float("inf")]})
    assert "grad_norm is not a finite number in 2 steps, first in step 2." in check(training_page(metrics, {})).text


def test_a_gain_that_may_be_chance_is_called_so() -> None:
    metrics, result = world.training()
    metrics = metrics.select("step", "reward_mean")
    result["gain"]["sampled"] = {"difference": 0.01, "low": -0.01, "high": 0.03}
    assert "this may be chance" in training_page(metrics, result)
    del result["gain"]
    assert "+13.9 points." in training_page(metrics, result)


def test_hostile_names_are_text() -> None:
    metrics, result = world.training(3)
    metrics = metrics.select("step", "reward_mean")
    result["manifest"] = "<script>alert(1)</script>"
    text = training_page(metrics, result)
    assert "<script" not in text
    assert training_page(metrics, result) == text
    assert "<script" not in training_markdown(metrics, result)


def test_markdown_is_short_and_has_pictures() -> None:
    metrics, result = world.training()
    text = training_markdown(metrics, result)
    assert text.count("<img") == 2
    assert len(text.encode()) < SIZE
    assert "| accuracy, greedy | 22.1% → 40.9%, +18.8 points" in text
