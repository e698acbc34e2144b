"""A real curation of 33,000 prompts from JSONL.gz, and what running it again costs: CPU-seconds and peak memory.

    python -m benchmarks.real_curation --data DIR --reader MODEL --sae SAE

`--data` holds deepscaler_passrate_dev, math_train, gsm8k_train, reasoning_gym_sample, and to decontaminate math500 and
gsm8k_test (.jsonl.gz). Each line is one `saerl curate` in a process of its own on two cores, everything that it starts
counted in:

    start-up    64 prompts, nothing to do
    one more    the same 64 and another one: the reader has to be started
    first       all prompts but the last 300, nothing known of them
    unchanged   the same again
    cached      the same with nothing but the features kept
    300 new     all prompts

The last line sets the extraction of the 300 beside the first one's, as it is and less the start of the reader.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

CORES = 2
NEW = 300
_SOURCES = ("deepscaler_passrate_dev", "math_train", "gsm8k_train", "reasoning_gym_sample")
_MEASURED = """
import json, os, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run([sys.executable, "-m", "flows.cli", "curate", sys.argv[1], "--json"], stdout=subprocess.PIPE,
                      check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
found = json.loads(done.stdout.splitlines()[-1])
print(json.dumps({"seconds": round(time.perf_counter() - began, 1), "cpu": round(used.ru_utime + used.ru_stime, 1),
                  "peak_gib": round(used.ru_maxrss / 2**20, 2), "id": found["id"], "prompts": found["prompts"],
                  "read": found["prompts_read_by_model"] + found["damaged_copies_read"],
                  "stages": {stage["stage"]: stage["seconds"] for stage in found["stages"] if not stage["cached"]}}))
"""


def read_all(data: Path) -> list[bytes]:
    """All rows, as JSON lines without ids that could clash."""
    rows = []
    for name in _SOURCES:
        with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                kept = {key: row.get(key) for key in ("id", "problem", "answer", "subject", "pass_rate")}
                rows.append(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
    return rows


def write_config(folder: Path, name: str, asked: argparse.Namespace) -> Path:
    """A config that reads `NAME.jsonl.gz` in the folder; every size has one workspace."""
    sets = [{"path": str(asked.data / f"{file}.jsonl.gz"), "preset": "saerl", "name": file}
            for file in ("math500", "gsm8k_test")]
    config = {
        "name": name, "workspace": "few-out" if name in ("few", "one") else "out",
        "data": {"path": f"{name}.jsonl.gz", "name": "real", "decontaminate": sets,
                 "columns": {"id": "id", "prompt": "problem", "answer": "answer", "subject": "subject",
                             "pass_rate": "pass_rate"}},
        "features": {"model": str(asked.reader), "sae": str(asked.sae), "max_tokens": 512},
        "labels": {"source": "column"},
        "schedule": {"batch_size": 16},
        "policy": {"model": str(asked.reader), "verifier": "math", "max_prompt_tokens": 400,
                   "max_response_tokens": 100},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def curate(config: Path) -> dict[str, Any]:
    """One `saerl curate`; seconds, CPU-seconds and peak memory (GiB, largest process) of it and its children."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(CORES), "POLARS_MAX_THREADS": str(CORES)}
    done = subprocess.run([sys.executable, "-c", _MEASURED, str(config)], env=environment, stdout=subprocess.PIPE,
                          check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every line of the table."""
    rows = read_all(asked.data)
    random.Random(0).shuffle(rows)  # so that the last 300 are as long as the others: the sets differ by a factor of 2
    for name, part in (("few", rows[:2000:31]), ("one", [*rows[:2000:31], rows[1]]), ("most", rows[:-NEW]),
                       ("all", rows)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wb", compresslevel=1) as file:
            file.write(b"".join(part))
    few, one, most, whole = (write_config(folder, name, asked) for name in ("few", "one", "most", "all"))
    curate(few)
    found = {"start-up": curate(few), "one more": curate(one), "first": curate(most), "unchanged": curate(most)}
    for cache in ("artifacts", "results", "manifests"):
        shutil.rmtree(folder / "out" / cache)
    found["cached"] = curate(most)
    assert found["cached"]["id"] == found["first"]["id"], "the same inputs give the same bytes"
    found["300 new"] = curate(whole)
    return found


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "reader", "sae"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve(), required=True)
    asked = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory(dir=os.environ.get("SAERL_BENCH_DIR")) as folder:
        found = measure(Path(folder), asked)
    start = found["start-up"]["cpu"]
    columns = f"{'seconds':>10}{'CPU':>10}{'less start':>12}{'peak GiB':>10}{'read':>8}  stages that ran"
    sys.stdout.write(" " * 12 + columns + "\n")
    for name, figures in found.items():
        sys.stdout.write(f"{name:<12}{figures['seconds']:>10}{figures['cpu']:>10}{figures['cpu'] - start:>12.1f}"
                         f"{figures['peak_gib']:>10}{figures['read']:>8}  {figures['stages']}\n")
    start_of_reader, whole, new = (found[name]["stages"]["extract"] for name in ("one more", "first", "300 new"))
    shares = {"300 new / first": round(new / whole, 4),
              "less the reader's start": round((new - start_of_reader) / (whole - start_of_reader), 4)}
    sys.stdout.write(f"extraction: {shares}, the reader's start {start_of_reader} s\n")
    sys.stdout.write(json.dumps({"cores": CORES, "extraction": shares, **found}) + "\n")


if __name__ == "__main__":
    main()
