"""Diversity and schedule at scale, on synthetic features: seconds, peak memory, agreement with the planted clusters.

    python -m benchmarks.diversity --rows 100000 --clusters 32

Exact spherical k-means on the full sparse rows is run beside it (on at most `--exact-rows` of them), from as many
starts: what the sketch loses.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.metrics import normalized_mutual_info_score

from benchmarks.synthetic import planted
from saerl_core import clusters, coverage, overlap
from saerl_core.config import ClustersConfig, CoverageConfig, ScheduleConfig
from saerl_core.features import FeatureRows, take
from saerl_core.schedule import make_schedule


def exact_spherical_kmeans(rows: FeatureRows, k: int, starts: int = 3, iterations: int = 25) -> np.ndarray:
    """Labels int64 [n] of Lloyd's algorithm on the idf-weighted rows themselves, best of several starts."""
    x = clusters.weighted(rows, clusters.inverse_document_frequency(rows))
    norms = np.sqrt(np.asarray(x.multiply(x).sum(axis=1), dtype=np.float64)).ravel()
    x = sp.csr_array(sp.diags_array(1 / np.maximum(norms, 1e-9)) @ x)
    best, best_score = np.zeros(len(rows), dtype=np.int64), -np.inf
    for start in range(starts):
        rng = np.random.default_rng(start)
        centroids = x[np.sort(rng.choice(len(rows), k, replace=False))].toarray()
        labels = np.zeros(len(rows), dtype=np.int64)
        for _ in range(iterations):
            before, similarity = labels, np.asarray(x @ centroids.T)
            labels = similarity.argmax(axis=1)
            sums: Any = sp.csr_array((np.ones(len(rows), np.float32), (labels, np.arange(len(rows)))),
                                     shape=(k, len(rows))) @ x
            centroids = np.where(np.bincount(labels, minlength=k)[:, None] > 0, sums.toarray(), centroids)
            centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-9)
            if (labels == before).all():
                break
        score = float((x @ centroids.T).max(axis=1).sum())
        if score > best_score:
            best, best_score = labels, score
    return best


def measure(n: int, k: int, exact_rows: int) -> dict[str, float]:
    """Seconds of each step, peak memory, and NMI with the planted clusters."""
    found: dict[str, float] = {"rows": n, "k": k}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        made = work()
        found[f"{name}_seconds"] = round(time.perf_counter() - started, 2)
        found[f"{name}_peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        return made

    rows, truth, _ = timed("generate", lambda: planted(n, k))
    found["features_a_row"] = round(len(rows.indices) / n, 1)
    found["features_gib"] = round((rows.indices.nbytes + rows.mean.nbytes + rows.max.nbytes) / 2**30, 2)
    grouped = timed("cluster", lambda: clusters.cluster(rows, ClustersConfig(k=k)))
    found["iterations"] = grouped.iterations
    found["nmi"] = round(float(normalized_mutual_info_score(truth, grouped.labels)), 4)
    timed("cards", lambda: clusters.cards(rows, grouped))
    difficulty = np.random.default_rng(0).random(n)
    plan = timed("schedule", lambda: make_schedule(grouped.labels, difficulty, ScheduleConfig()))
    ours = timed("overlap", lambda: overlap.batch_overlap(rows, grouped.codebook.idf, plan.batches))
    random = overlap.batch_overlap(rows, grouped.codebook.idf, overlap.shuffled(plan, 0)[:500])
    found["overlap_ours"], found["overlap_shuffled"] = round(float(ours.mean()), 4), round(float(random.mean()), 4)
    for method in ("facility_location", "log_det"):
        config = CoverageConfig(budget=n // 10, method=method)
        timed(method, lambda config=config: coverage.select(rows, grouped.labels, grouped.codebook, np.arange(n),
                                                            config))
    if exact_rows:
        some = np.sort(np.random.default_rng(1).choice(n, min(n, exact_rows), replace=False))
        exact = timed("exact", lambda: exact_spherical_kmeans(take(rows, some), k))
        found["nmi_exact"] = round(float(normalized_mutual_info_score(truth[some], exact)), 4)
    return found


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="prompts (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=32, help="planted clusters, and k (default: %(default)s)")
    parser.add_argument("--exact-rows", type=int, default=100_000, help="rows of exact k-means; 0: none")
    arguments = parser.parse_args()
    found = measure(arguments.rows, arguments.clusters, arguments.exact_rows)
    for name, value in found.items():
        sys.stdout.write(f"{name:<32} {value:>12}\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
