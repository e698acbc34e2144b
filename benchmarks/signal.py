"""What do SAE features see in prompts, beside the obvious controls? Real mathematics, or the toy.

    python -m benchmarks.signal real --data DIR --reader MODEL --sae SAE [--split tune|test]
    python -m benchmarks.signal toy

`real` needs the files deepscaler_passrate_dev, math_train, gsm8k_train and synthetic_corruptions (.jsonl.gz) in DIR.
Defaults are chosen on the split `tune`; `test` is for the figures that are quoted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import scipy.sparse as sp
from sklearn.metrics import normalized_mutual_info_score

from benchmarks.ceiling import measure_toy
from benchmarks.readings import Reading, read
from benchmarks.rows import Rows, chats, load, lot, unique
from benchmarks.tables import show
from saerl_core import clusters, corruptions, likelihood, sae_spec
from saerl_core.config import ClustersConfig, DifficultyConfig, FeaturesConfig, QualityConfig
from saerl_core.difficulty import fit as fit_difficulty
from saerl_core.extract import extract, load_reader
from saerl_core.probes import auc, bootstrap_interval, fit_logistic, fit_mlp, fit_ridge, inputs, spearman
from saerl_core.rl import rollouts

_DRAWS = {200: 8, 1000: 4, 5000: 1}
"""Labels → how many draws of them are averaged."""
_HELD_OUT = 3000


def main() -> None:
    """Print tables, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    worlds = parser.add_subparsers(dest="world", required=True)
    real = worlds.add_parser("real")
    for name in ("data", "reader", "sae"):
        real.add_argument(f"--{name}", type=Path, required=True)
    real.add_argument("--split", choices=("tune", "test"), default="test")
    worlds.add_parser("toy")
    asked = parser.parse_args()
    found = measure_real(asked.data, asked.reader, asked.sae, asked.split) if asked.world == "real" else measure_toy()
    sys.stdout.write(json.dumps(found) + "\n")


def measure_real(data: Path, reader: Path, sae_folder: Path, split: str) -> dict[str, Any]:
    """All three properties on real prompts."""
    config = FeaturesConfig(model=str(reader), sae=str(sae_folder), tokens_per_batch=8192)
    spec = sae_spec.read_spec(sae_folder)
    assert spec.layer is not None
    assert spec.k is not None
    backbone, encoder = load_reader(reader, sae_folder, spec.layer, config)

    def reading(rows: Rows) -> Reading:
        return read(backbone, encoder, chats(rows), config, spec.k or 32)

    found: dict[str, Any] = {"split": split}
    found["difficulty"] = _difficulty(unique(load(data, "deepscaler_passrate_dev")), reading, reader, split)
    found["quality"] = _quality(data, backbone, encoder, config, reading, reader, split)
    found["diversity"] = _diversity(load(data, "math_train"), backbone, encoder, config, reading, split)
    return found


def _difficulty(rows: Rows, reading: Callable[[Rows], Reading], reader: Path, split: str) -> dict[str, Any]:
    """Spearman with the measured pass rate, on held-out rows, for every proxy and control."""
    rows = [row for row in rows if in_split(row["problem"], split)]
    order = np.argsort([lot("held out " + row["problem"]) for row in rows])
    held_out, pool = order[: min(_HELD_OUT, len(order) // 3)], order[min(_HELD_OUT, len(order) // 3) :]
    hard = 1 - np.array([row["pass_rate"] for row in rows])
    seen = reading(rows)
    policy = rollouts.load_policy(reader)
    prompt_nll, _ = likelihood.nll(policy, chats(rows), [""] * len(rows))
    plain = {"length in tokens": seen.tokens, "active features": seen.active, "activation mass": seen.mass,
             "NLL per token": prompt_nll}
    learned: dict[str, tuple[sp.csr_array, str]] = {
        "SAE, ridge": (seen.sae, "ridge"), "SAE, ElasticNet": (seen.sae, "elastic_net"),
        "dense residual, ridge": (seen.dense, "ridge"), "random projection, ridge": (seen.random, "ridge"),
        "TF-IDF, ridge": (seen.words, "ridge"), "shuffled labels, SAE ridge": (seen.sae, "ridge"),
    }
    table: dict[str, dict[str, list[float]]] = {}
    for count, draws in _DRAWS.items():
        count = min(count, len(pool))
        chosen = [np.sort(np.random.default_rng(draw).choice(pool, count, replace=False)) for draw in range(draws)]
        predictions: dict[str, list[np.ndarray]] = {name: [values[held_out]] for name, values in plain.items()}
        for name, (x, method) in learned.items():
            settings = DifficultyConfig(method=method)  # type: ignore[arg-type]  # one of its literals
            for draw, labelled in enumerate(chosen):
                target = hard[labelled]
                if name.startswith("shuffled"):
                    target = np.random.default_rng(draw).permutation(target)
                probe = fit_difficulty(x[labelled], target, settings)
                predictions.setdefault(name, []).append(probe.predict(x[held_out]))
        table[str(count)] = {name: _mean_interval(several, predictions["SAE, ridge"], hard[held_out])
                             for name, several in predictions.items()}
    show(f"Spearman with measured difficulty (95% interval over {len(held_out)} held-out rows), and how far SAE ridge "
         f"is ahead; split {split}", table, "labels")
    return table


def in_split(text: str, split: str) -> bool:
    """Whether a text belongs to this split: 45% are for tuning."""
    return (lot(text) < 0.45) == (split == "tune")


def _mean_interval(several: list[np.ndarray], ours: list[np.ndarray], hard: np.ndarray) -> list[float]:
    """[mean over draws, its 95% interval over held-out rows, SAE ridge minus this one with its interval]."""
    def value(these: list[np.ndarray], rows: np.ndarray) -> float:
        return float(np.mean([spearman(predicted[rows], hard[rows]) for predicted in these]))

    everything = np.arange(len(hard))
    low, high = bootstrap_interval(lambda i: value(several, i), len(hard), draws=200)
    ahead_low, ahead_high = bootstrap_interval(lambda i: value(ours, i) - value(several, i), len(hard), draws=200)
    ahead = value(ours, everything) - value(several, everything)
    return [round(figure, 3) for figure in (value(several, everything), low, high, ahead, ahead_low, ahead_high)]


def _quality(data: Path, backbone: Any, encoder: Any, config: FeaturesConfig, reading: Callable[[Rows], Reading],
             reader: Path, split: str) -> dict[str, Any]:
    """AUC of intact against damaged, per kind of damage; probes have seen neither the test originals nor their copies.

    Two questions: a probe fitted on the data set's own damage, and the product's, which damages copies itself.
    """
    rows = load(data, "synthetic_corruptions")
    originals = {row["id"]: row for name in ("math_train", "gsm8k_train") for row in load(data, name)}
    # the reader has not been trained on the originals of this half
    unread = np.array([hashlib.sha1(originals[row["orig_id"]]["problem"].encode()).hexdigest()[0] >= "8"
                       for row in rows])
    if split == "tune":  # within the other half only
        inner = np.array([lot(row["orig_id"]) < 0.5 for row in rows])
        fit_rows, test_rows = np.flatnonzero(~unread & inner), np.flatnonzero(~unread & ~inner)
    else:
        fit_rows, test_rows = np.flatnonzero(~unread), np.flatnonzero(unread)
    kind = np.array([row["corruption"] for row in rows])
    intact = kind == "none"
    seen = reading(rows)
    text_damage = ~np.char.startswith(kind, "answer")
    fit_rows_text = fit_rows[text_damage[fit_rows]]
    scores: dict[str, np.ndarray] = {}
    for name, x in (("SAE", seen.sae), ("dense residual", seen.dense), ("random projection", seen.random),
                    ("TF-IDF", seen.words)):
        scores[f"{name}, logistic"] = fit_logistic(x[fit_rows_text], intact[fit_rows_text]).predict(x)
    scores["SAE, ridge"] = fit_ridge(seen.sae[fit_rows_text], intact[fit_rows_text].astype(float)).predict(seen.sae)
    scores["SAE, mlp"] = fit_mlp(seen.sae[fit_rows_text], intact[fit_rows_text], hidden=32).predict(seen.sae)
    clean = fit_rows[intact[fit_rows]]
    made = corruptions.make(chats([rows[i] for i in clean]), QualityConfig.model_fields["corruptions"].default,
                            len(clean), 0)
    copies = extract(backbone, encoder, [copy.messages for copy in made], config)
    own = sp.csr_array(sp.vstack([seen.sae[clean], inputs(copies)]))
    labels = np.repeat([True, False], [len(clean), len(made)])
    for name, probe in (("logistic", fit_logistic(own, labels)), ("ridge", fit_ridge(own, labels.astype(float))),
                        ("mlp", fit_mlp(own, labels, hidden=32))):
        scores[f"SAE, {name}, on damage made by us"] = probe.predict(seen.sae)
    _, answer_nll = likelihood.nll(rollouts.load_policy(reader), chats(rows), [f"#### {row['answer']}" for row in rows])
    scores["answer NLL (no labels)"] = -answer_nll
    table: dict[str, dict[str, list[float]]] = {}
    for damage in np.unique(kind[~intact]):
        these = test_rows[intact[test_rows] | (kind[test_rows] == damage)]
        table[str(damage)] = {name: _auc_interval(score[these], intact[these]) for name, score in scores.items()}
    show(f"AUC (95% interval) against {int(intact[test_rows].sum())} intact rows, split {split}", table, "damage")
    return table


def _auc_interval(score: np.ndarray, positive: np.ndarray) -> list[float]:
    low, high = bootstrap_interval(lambda i: auc(score[i], positive[i]), len(score), draws=200)
    return [round(figure, 3) for figure in (auc(score, positive), low, high)]


def _diversity(rows: Rows, backbone: Any, encoder: Any, config: FeaturesConfig, reading: Callable[[Rows], Reading],
               split: str) -> dict[str, Any]:
    """NMI of clusters with MATH's seven subjects."""
    rows = [row for row in rows if in_split(row["problem"], split)]
    subject = [row["subject"] for row in rows]
    features = extract(backbone, encoder, chats(rows), config)
    seen = reading(rows)
    table: dict[str, dict[str, list[float]]] = {}
    for k in (7, 32):
        found: dict[str, list[float]] = {"SAE": []}
        for seed in range(5):
            ours = clusters.cluster(features, ClustersConfig(k=k, seed=seed)).labels
            found["SAE"].append(normalized_mutual_info_score(subject, ours))
            for name, x in (("dense residual", seen.dense), ("random projection", seen.random), ("TF-IDF", seen.words)):
                found.setdefault(name, []).append(normalized_mutual_info_score(subject, _kmeans(x, k, seed)))
        table[str(k)] = {name: [round(float(np.mean(several)), 3), round(min(several), 3), round(max(several), 3)]
                         for name, several in found.items()}
    show(f"NMI of clusters with {len(set(subject))} subjects (range of 5 seeds), {len(rows)} rows, split {split}",
         table, "k")
    return table


def _kmeans(x: sp.csr_array, k: int, seed: int) -> np.ndarray:
    """Spherical k-means in 512 dimensions (a random projection where the matrix is wider), as for SAE features."""
    shape: Any = x.shape
    vectors = x.toarray() if shape[1] <= 512 else x @ np.random.default_rng(seed).standard_normal((shape[1], 512))
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    kmeans = faiss.Kmeans(vectors.shape[1], k, niter=25, nredo=3, spherical=True, seed=seed + 1,
                          max_points_per_centroid=10_000)
    kmeans.train(vectors.astype(np.float32))
    return clusters.assign(vectors.astype(np.float32), np.asarray(kmeans.centroids).reshape(k, -1))[0]

if __name__ == "__main__":
    main()
