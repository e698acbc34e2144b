"""Prefect's share of a first run: the same stages as a flow and as plain functions, in turn, in CPU-seconds.

    python -m benchmarks.prefect_share --data DIR --reader MODEL --sae SAE [--prompts 8000]

One process, its start and that of Prefect's own server aside; the server's CPU-seconds count. Each side curates the
same prompts (see `benchmarks.real_curation`) into an empty workspace, and both must give the same manifest.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.real_curation import CORES, read_all, write_config

for _name, _value in {"PREFECT_LOGGING_LEVEL": "ERROR", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                      "OMP_WAIT_POLICY": "passive"}.items():  # as `saerl` sets them
    os.environ.setdefault(_name, _value)


def plainly(config: Any) -> str:
    """The stages of the flow, one after the other, without Prefect; the manifest's id."""
    from tasks import cluster, difficulty, extract, inputs, label, manifest, quality, read

    root, base = config.root, Path(config.base)
    found = inputs.resolve_inputs(config)
    table = read.read.fn(root, found.data, found.evaluations, found.policy, base, config.data, config.hygiene,
                         config.policy, found.data_hash, found.evaluation_hashes, found.policy_hash, found.verifier)

    def features(source: Any) -> Any:
        shards = extract.plan_shards(source, config.features.shard_rows)
        for shard in shards:
            extract.extract_shard.fn(found, config.features, source, shard.start, shard.number, shard.total,
                                     shard.stop - shard.start, shard.content, found.store.name)
        return extract.gather.fn(root, found, source, [shard.content for shard in shards], found.store.name)

    rows = features(table)
    groups = cluster.cluster.fn(root, rows, config.clusters, None)
    labels = label.label.fn(root, table, groups, found.policy, found.policy_hash, base, found.verifier, config.labels,
                            config.policy)
    hard = difficulty.difficulty.fn(root, rows, table, labels, None, None, None, config.difficulty)
    damaged = quality.corrupt.fn(root, table, config.quality, config.data.instruction)
    good = quality.quality.fn(root, rows, table, labels, damaged, features(damaged), config.quality)
    return manifest.manifest.fn(root, found, config, table, rows, groups, labels, hard, good, None,
                                manifest.curation_hash(config, found)).path.name


def as_flow(config: Any) -> str:
    """The flow; the manifest's id."""
    from flows.curate import curate

    return curate(config).id


def cpu_seconds() -> float:
    """User and system time of this process and of its living children, Prefect's server among them."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def measure(folder: Path, asked: argparse.Namespace) -> dict[str, list[float]]:
    """CPU-seconds of each side in each round."""
    from saerl_core.config import load_config

    rows = read_all(asked.data)
    for name, part in (("few", rows[:2000:31]), ("most", rows[:: max(1, len(rows) // asked.prompts)])):
        with gzip.open(folder / f"{name}.jsonl.gz", "wb", compresslevel=1) as file:
            file.write(b"".join(part))
    few, most = (load_config(write_config(folder, name, asked)) for name in ("few", "most"))
    sides: dict[str, Callable[[Any], str]] = {"as a flow": as_flow, "plain functions": plainly}
    as_flow(few)  # starts the server, imports what is needed, loads the reader
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(asked.rounds):
        made = set()
        for name, side in sides.items():
            shutil.rmtree(most.root, ignore_errors=True)
            before = cpu_seconds()
            made.add(side(most))
            found[name].append(round(cpu_seconds() - before, 2))
        assert len(made) == 1, "both sides give the same manifest"
        sys.stderr.write(f"round {turn + 1} of {asked.rounds}\n")
    return found


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "reader", "sae"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--prompts", type=int, default=8000, help="about so many (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-CORES:])
    with tempfile.TemporaryDirectory(dir=os.environ.get("SAERL_BENCH_DIR")) as folder:
        found = measure(Path(folder), asked)
    shares = [1 - plain / flow for flow, plain in zip(found["as a flow"], found["plain functions"], strict=True)]
    for name, seconds in found.items():
        sys.stdout.write(f"{name:<18}{seconds} CPU-seconds\n")
    sys.stdout.write(f"{'share of Prefect':<18}{[f'{share:.1%}' for share in shares]}\n")
    sys.stdout.write(json.dumps({"prompts": asked.prompts, **found, "shares": [round(share, 4) for share in shares]})
                     + "\n")


if __name__ == "__main__":
    main()
