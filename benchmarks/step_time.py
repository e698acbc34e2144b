"""Where the seconds of a verl step on the CPU go: 32 prompts x 8 answers on the benchmark's pool, plain GRPO.

    python -m benchmarks.step_time [--steps 14] [--cores 2]

The figures are verl's own, medians over the steps after the second; `gen` is fetching, and generating is most of what
`step` is more than the sum of the rest. Neighbours on the same cores change them by half: look at `uptime` first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from benchmarks.grpo import CONFIG, draw_pool
from saerl_core.rl.metrics import read_metrics

_PLAIN = {"quality.method": "none", "quality.suspect_answers": 0, "difficulty.method": "none",
          "schedule.max_difficulty": 1, "evaluation.prompts": 8}
_WARM_UP = 2


def train(folder: str, steps: int) -> dict[str, list[float]]:
    """Run the toy for some steps: verl's timer → its seconds, step by step."""
    settings = {**_PLAIN, "workspace": folder, "schedule.steps": steps, "train.save_every": steps}
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    subprocess.run([sys.executable, "-m", "flows.cli", "run", str(CONFIG), *changes], check=True,
                   stdout=subprocess.DEVNULL)
    (metrics,) = Path(folder).glob("runs/*/metrics")
    table = read_metrics(metrics)[_WARM_UP:]
    return {name.removeprefix("timing_s/"): table[name].drop_nulls().to_list()
            for name in table.columns if name.startswith("timing_s/")}


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    draw_pool()
    with tempfile.TemporaryDirectory() as folder:
        seconds = train(folder, arguments.steps)
    for name, values in sorted(seconds.items(), key=lambda found: -statistics.median(found[1])):
        sys.stdout.write(f"{name:<18}{statistics.median(values):>7.2f} s ({min(values):.2f} to {max(values):.2f})\n")
    sys.stdout.write(json.dumps({
        "seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "steps": arguments.steps, "cores": arguments.cores, "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "verl", "ray", "transformers")}}) + "\n")


if __name__ == "__main__":
    main()
