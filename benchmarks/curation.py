"""Curation after extraction at scale, on synthetic features: seconds and peak memory of every stage, and their growth.

    python -m benchmarks.curation --rows 100000
    python -m benchmarks.curation --scaling              10k, 30k, 100k, 300k and 1M prompts

The stages are those of the flow, called as the flow calls them: cluster, label (2,000 labels from a column),
difficulty, quality (2,000 prompts known to be good or bad, one in 20 of them wrongly), manifest with its schedule and
report. Both probes can be learned, so both gates open and every prompt is scored. Each size runs in a process of its
own on two cores, another process having made its inputs. Memory is the peak of resident pages, those of mapped files
included. Growth is the exponent of the power law that fits all sizes best (least squares of the logarithms).

Up to 100,000 prompts, the clusters are held against exact spherical k-means on the sparse rows themselves, with the
same weights, restarts and iterations: NMI of both with the planted clusters.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

CORES = 2
LABELS = 2000
WIDTH = 65_536
SCALING = [10_000, 30_000, 100_000, 300_000, 1_000_000]
_EXACT_ROWS = 100_000
_WRONG = 0.05
"""Share of the known qualities that are wrong."""
_INPUTS, _TRUTH = "inputs.json", "truth.json"
_WORDS = ("a", "train", "leaves", "with", "apples", "which", "sum", "of", "integers", "triangle", "is", "how", "many")


def make_inputs(folder: Path, n: int, k: int) -> None:
    """Write what extraction leaves behind: a prompt table, gathered features, and the planted clusters."""
    import numpy as np
    import polars as pl

    from benchmarks.synthetic import planted
    from saerl_core import artifact, feature_store, features, hygiene
    from saerl_core.config import HygieneConfig
    from saerl_core.prompts import SCHEMA
    from tasks.extract import ROWS
    from tasks.read import seal_table

    rows, truth, bad = planted(n, k, WIDTH)
    rng = np.random.default_rng(1)
    often = np.argsort(-np.bincount(rows.indices, minlength=WIDTH), kind="stable")[:500]
    weights = np.zeros(WIDTH)
    weights[often] = rng.normal(size=len(often))
    signal = rows.matrix() @ weights
    signal = (signal - signal.mean()) / signal.std()
    rate = (1 / (1 + np.exp(2 * signal + rng.normal(size=n)))).clip(0, 1)
    known = np.zeros(n, dtype=bool)
    known[rng.choice(n, min(LABELS, n), replace=False)] = True
    words = rng.choice(np.array(_WORDS), (4096, 40))
    texts = [" ".join(line) for line in words]
    texts = [f"{number}: {texts[number % 4096]}" for number in range(n)]
    table = pl.DataFrame({
        "key": [f"{number:032x}" for number in range(n)],
        "id": [str(number) for number in range(n)],
        "messages": [[{"role": "user", "content": text}] for text in texts],
        "text": texts,
        "answer": [str(number) for number in range(n)],
        "data_source": pl.repeat("synthetic", n, eager=True),
        "subject": [f"subject {number % 7}" for number in truth],
        "level": None,
        "pass_rate": np.where(known, rate, np.nan),
        "quality": np.where(known, (bad == (rng.random(n) < _WRONG)).astype(float), np.nan),
        "solution": None,
        "drop_reason": None,
    }, schema_overrides=SCHEMA).with_columns(pl.col("pass_rate", "quality").fill_nan(None))
    marked = hygiene.mark(table, [], HygieneConfig(near_duplicate_overlap=None, contamination_overlap=None))
    prompts = seal_table(folder, "read", *marked)
    with artifact.staging(folder / "artifacts") as staged:
        feature_store.write_rows(staged / ROWS, rows)
        artifact.write_json(staged / "health.json", vars(features.health(rows)))
        gathered = artifact.seal(staged, "features", {"rows": n})
    (folder / _TRUTH).write_text(json.dumps(truth.tolist()))
    (folder / _INPUTS).write_text(json.dumps({"table": prompts.model_dump(mode="json"),
                                              "features": gathered.model_dump(mode="json")}))


def curate(folder: Path, k: int) -> dict[str, Any]:
    """Run the stages on the inputs in `folder`; seconds of each, and the peak memory of the process."""
    from sklearn.metrics import normalized_mutual_info_score

    from saerl_core.artifact import ArtifactRef
    from tasks import cluster, difficulty, label, manifest, quality

    refs = {name: ArtifactRef.model_construct(**{**ref, "path": Path(ref["path"])})
            for name, ref in json.loads((folder / _INPUTS).read_text()).items()}
    table, features = refs["table"], refs["features"]
    config, inputs = _config(folder, k), _inputs(folder)
    found: dict[str, Any] = {}

    def timed(name: str, stage: Callable[..., Any], *args: Any) -> Any:
        clock, cpu = time.perf_counter(), time.process_time()
        made = stage(*args)
        found[f"{name}_seconds"] = round(time.perf_counter() - clock, 2)
        found[f"{name}_cpu"] = round(time.process_time() - cpu, 2)
        found[f"{name}_peak_gib"] = round(_peak_gib(), 2)
        return made

    grouped = timed("cluster", cluster.cluster.fn, folder, features, config.clusters, None)
    labels = timed("label", label.label.fn, folder, table, grouped, folder, "0" * 64, folder, "exact-1", config.labels,
                   config.policy)
    hard = timed("difficulty", difficulty.difficulty.fn, folder, features, table, labels, None, None, None,
                 config.difficulty)
    good = timed("quality", quality.quality.fn, folder, features, table, labels, None, None, config.quality)
    made = timed("manifest", manifest.manifest.fn, folder, inputs, config, table, features, grouped, labels, hard, good,
                 None, "0" * 64)
    for total, ending in (("seconds", "_seconds"), ("cpu_seconds", "_cpu")):
        found[total] = round(sum(value for name, value in found.items() if name.endswith(ending)), 2)
    header = json.loads((made.path / "manifest.json").read_text())
    truth = json.loads((folder / _TRUTH).read_text())
    found |= {
        "peak_gib": round(_peak_gib(), 2),
        "kept": header["prompts"]["kept"],
        "difficulty_used": header["difficulty"]["used"],
        "quality_used": header["quality"]["used"],
        "report_kib": (made.path / "report.html").stat().st_size // 1024,
        "nmi": round(float(normalized_mutual_info_score(truth, cluster.load_labels(grouped))), 4),
    }
    return found


def exact(folder: Path, k: int) -> dict[str, Any]:
    """NMI with the planted clusters of exact spherical k-means: Lloyd's iterations, best of the restarts."""
    import numpy as np
    import scipy.sparse as sp
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.preprocessing import normalize

    from saerl_core import clusters, feature_store
    from tasks.extract import ROWS

    config = _config(folder, k).clusters
    rows = feature_store.read_rows(Path(json.loads((folder / _INPUTS).read_text())["features"]["path"]) / ROWS)
    x: Any = normalize(clusters.weighted(rows, clusters.inverse_document_frequency(rows)))
    best, labels, rng = -np.inf, np.zeros(len(rows)), np.random.default_rng(config.seed)
    for _ in range(config.restarts):
        centroids: Any = x[np.sort(rng.choice(len(rows), k, replace=False))].toarray()
        for _ in range(config.iterations):
            nearest = (x @ centroids.T).argmax(1)
            members = sp.csr_array((np.ones(len(rows), np.float32), (nearest, np.arange(len(rows)))), (k, len(rows)))
            centroids = normalize((members @ x).toarray())
        similarity = x @ centroids.T
        if (reached := similarity.max(1).sum()) > best:
            best, labels = reached, similarity.argmax(1)
    truth = json.loads((folder / _TRUTH).read_text())
    return {"nmi_exact": round(float(normalized_mutual_info_score(truth, labels)), 4)}


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _config(folder: Path, k: int) -> Any:
    from saerl_core.config import RunConfig

    return RunConfig.model_validate({
        "workspace": str(folder),
        "data": {"path": "none", "name": "synthetic",
                 "columns": {"prompt": "problem", "answer": "answer", "pass_rate": "pass_rate", "quality": "quality"}},
        "features": {"model": "none", "sae": "none"},
        "clusters": {"k": k},
        "labels": {"source": "column"},
        "quality": {"labels": "column"},
        "policy": {"model": "none", "verifier": "exact"},
    })


def _inputs(folder: Path) -> Any:
    from saerl_core.sae_spec import SaeSpec
    from tasks.inputs import Inputs

    none = "0" * 64
    return Inputs(
        data=(folder / "none",), data_hash=none, evaluations={}, evaluation_hashes={}, model=folder, model_hash=none,
        layers=12, d_model=512, sae=folder, encoder_hash=none,
        encoder=SaeSpec("topk", d_in=512, d_sae=WIDTH, k=None, layer=6, heldout_fvu=None), layer=6, store=folder,
        policy=folder, policy_hash=none, verifier="exact-1", rewards=None, rewards_hash=None)


def _in_a_process(mode: str, folder: Path, n: int, k: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(CORES), "POLARS_MAX_THREADS": str(CORES),
                   "OMP_WAIT_POLICY": "passive", "PREFECT_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run([sys.executable, "-m", "benchmarks.curation", "--worker", mode, str(folder), "--rows", str(n),
                           "--clusters", str(k)], env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(n: int, k: int) -> dict[str, Any]:
    """Figures of one size."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("SAERL_BENCH_DIR")) as folder:
        _in_a_process("make", Path(folder), n, k)
        found = _in_a_process("curate", Path(folder), n, k)
        found |= _in_a_process("exact", Path(folder), n, k) if n <= _EXACT_ROWS else {"nmi_exact": None}
    return {"rows": n, "k": k, "width": WIDTH, **found, "gib_per_million_rows": round(1e6 * found["peak_gib"] / n, 2)}


def growth(found: list[dict[str, Any]], name: str) -> float:
    """Exponent of the power law that fits a figure at all sizes best."""
    import numpy as np

    slope, _ = np.polyfit(np.log([size["rows"] for size in found]), np.log([size[name] for size in found]), 1)
    return round(float(slope), 3)


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="prompts (default: %(default)s)")
    parser.add_argument("--scaling", dest="rows", action="store_const", const=SCALING, help=f"the same as {SCALING}")
    parser.add_argument("--clusters", type=int, default=32, help="planted clusters, and k (default: %(default)s)")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        mode, folder = arguments.worker
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-CORES:])
        n, k = arguments.rows[0], arguments.clusters
        work = {"make": lambda: make_inputs(Path(folder), n, k), "curate": lambda: curate(Path(folder), k),
                "exact": lambda: exact(Path(folder), k)}[mode]
        sys.stdout.write(json.dumps(work()) + "\n")
        return
    found = [measure(n, arguments.clusters) for n in sorted(arguments.rows)]
    for name in found[0]:
        sys.stdout.write(f"{name:<24}" + "".join(f"{figures[name]!s:>14}" for figures in found) + "\n")
    measured = [name for name in found[0] if name.endswith(("seconds", "_cpu", "peak_gib"))]
    exponents = {name: growth(found, name) for name in measured} if len(found) > 1 else {}
    for name, value in exponents.items():
        sys.stdout.write(f"growth of {name:<24}{value:>14}\n")
    versions = {name: metadata.version(name) for name in ("faiss-cpu", "numpy", "polars", "scikit-learn", "scipy")}
    sys.stdout.write(json.dumps({"cores": CORES, "python": platform.python_version(), **versions, "sizes": found,
                                 "growth": exponents}) + "\n")


if __name__ == "__main__":
    main()
