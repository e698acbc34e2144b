from __future__ import annotations

import numpy as np
import polars as pl
from scipy.stats import rankdata

from saerl_core.manifest import Curation
from saerl_core.report.markdown import SIZE
from saerl_core.report.training import training_markdown, training_page
from tests.report import world
from tests.report.test_page import check


def batch_difficulty(curation: Curation) -> list[float]:
    return curation.difficulty[curation.schedule.batches].mean(axis=1).tolist()


def test_a_finished_run() -> None:
    metrics, result = world.training()
    _, curation = world.make(n=1400, k=8)
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
    _, curation = world.make(n=600, k=4)
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


def rewards(prompts: int = 120, steps: int = 12, seed: int = 0) -> pl.DataFrame:
    """Each prompt in one step, its answers right as often as its difficulty says."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(prompts)
    return pl.DataFrame({"key": [f"{row}" for row in range(prompts)], "step": np.arange(prompts) % steps + 1,
                         "difficulty": difficulty, "successes": rng.binomial(8, 1 - difficulty).astype(float),
                         "trials": np.full(prompts, 8)})


def test_difficulty_is_set_against_the_reward_of_each_prompt() -> None:
    metrics, result = world.training()
    seen = rewards()
    rho = np.corrcoef(rankdata(seen["difficulty"]), rankdata(seen["successes"] / seen["trials"]))[0, 1]
    reading = check(training_page(metrics, result, [0.4 + step / 100 for step in range(40)], seen))
    words = " ".join(reading.text.split())
    assert f"Rank correlation of predicted difficulty and mean reward: −{-rho:.2f} (−" in words
    assert "the same within a step, mean −0." in words
    assert "difficulty and loss, steps" in words
    assert reading.tags.count("svg") == 12
    short = training_markdown(metrics, result, None, seen)
    assert f"| rank correlation, difficulty and reward | −{-rho:.2f} (−" in short


def test_a_prompt_of_several_epochs_counts_once() -> None:
    seen = rewards()
    twice = pl.concat([seen, seen.with_columns(pl.col("step") + 12)])
    metrics, result = world.training()
    once, again = (" ".join(check(training_page(metrics, result, None, frame)).text.split()) for frame in (seen, twice))
    assert "prompts rewarded 120" in once
    assert "prompts rewarded 120" in again


def test_rewards_that_cannot_be_compared_are_told_so() -> None:
    metrics, result = world.training()
    constant = rewards().with_columns(difficulty=pl.lit(0.5))
    assert "counted as equally hard" in training_page(metrics, result, None, constant)
    few = training_page(metrics, result, None, rewards(5, 2))
    assert "Too few prompts were rewarded" in few
    unknown = rewards().with_columns(difficulty=pl.lit(None, pl.Float64))
    assert "Too few prompts were rewarded" in training_page(metrics, result, None, unknown)
    penalised = rewards().with_columns(pl.col("successes") - 4)
    assert "Dashed" not in training_page(metrics.drop("pg_loss"), result, None, penalised)
