"""The toy's part of `benchmarks.signal`: difficulty against the best that noisy pass rates allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Rows, chats, lot, read_gzip
from benchmarks.tables import Table, show
from saerl_core import sae_spec
from saerl_core.config import DifficultyConfig, FeaturesConfig
from saerl_core.difficulty import fit as fit_difficulty
from saerl_core.extract import extract, load_reader
from saerl_core.locations import resolve
from saerl_core.probes import bootstrap_interval, inputs, spearman
from saerl_core.rl import rollouts
from saerl_core.rl.verl_side.saerl_verifier import is_correct


def measure_toy(labels: int = 300, samples: int = 8, held_out: int = 900) -> dict[str, Any]:
    """Difficulty from few labels against the ceiling that the noise of the pass rates leaves, on the toy's prompts.

    The ceiling is the rank correlation of two halves of the measured answers; a proxy is held against the same halves.
    """
    rows = [row for row in read_gzip(resolve("saerl:toy/train.jsonl.gz", Path())) if row["defect"] != "duplicate"]
    rows = sorted(rows, key=lambda row: lot(row["problem"]))[: labels + held_out]
    model, sae_folder = resolve("saerl:toy/lm", Path()), resolve("saerl:toy/sae", Path())
    config = FeaturesConfig(model=str(model), sae=str(sae_folder))
    spec = sae_spec.read_spec(sae_folder)
    assert spec.layer is not None
    backbone, encoder = load_reader(model, sae_folder, spec.layer, config)
    x = inputs(extract(backbone, encoder, chats(rows), config))
    policy = rollouts.load_policy(model)
    def correct(some: Rows, count: int, seed: int) -> np.ndarray:
        texts = rollouts.sample_texts(policy, chats(some), samples=count, temperature=1.0, max_response_tokens=56,
                                      seed=seed)
        return np.array([[is_correct(text, row["answer"]) for text in several]
                         for several, row in zip(texts, some, strict=True)])

    target = 1 - correct(rows[:labels], samples, 0).mean(axis=1)
    answers = correct(rows[labels:], 32, 1)
    half_a, half_b = 1 - answers[:, :16].mean(axis=1), 1 - answers[:, 16:].mean(axis=1)
    intact = np.array([row["defect"] == "" for row in rows[labels:]])
    table: Table = {}
    for name, of in (("intact prompts", intact), ("all prompts", np.ones(len(intact), bool))):
        of = np.flatnonzero(of)
        found: dict[str, list[float]] = {}
        for method in ("ridge", "elastic_net"):
            settings = DifficultyConfig(method=method)  # type: ignore[arg-type]  # one of its literals
            predicted = fit_difficulty(x[:labels], target, settings).predict(x[labels:])

            def share(i: np.ndarray, predicted: np.ndarray = predicted) -> float:
                ours = (spearman(predicted[i], half_a[i]) + spearman(predicted[i], half_b[i])) / 2
                return ours / spearman(half_a[i], half_b[i])

            low, high = bootstrap_interval(lambda i, of=of, share=share: share(of[i]), len(of))
            rho = (spearman(predicted[of], half_a[of]) + spearman(predicted[of], half_b[of])) / 2
            found[f"{method}, Spearman"] = [round(rho, 3)]
            found[f"{method}, share of the ceiling"] = [round(figure, 3) for figure in (share(of), low, high)]
        table[name] = {"ceiling, Spearman": [round(spearman(half_a[of], half_b[of]), 3)], **found}
    show(f"toy: difficulty from {labels} labels of {samples} answers, on {held_out} other prompts", table, "prompts")
    return table
