"""What a command costs before it does anything, in CPU-seconds, its children counted in.

    python -m benchmarks.startup

`saerl check` is that of the toy: it reads all prompts, and verl composes and validates its configuration in a child.
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

COMMANDS = {"saerl --help": ["--help"], "saerl fields": ["fields"], "saerl check": ["check", "--json"]}
_ROOT = Path(__file__).resolve().parents[1]


def cpu_seconds(arguments: list[str], folder: str) -> float:
    """One `saerl` in a process of its own, in an empty folder."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "flows.cli", *arguments], cwd=folder, stdout=subprocess.DEVNULL,
                   env={**os.environ, "PYTHONPATH": str(_ROOT)}, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            for name, arguments in COMMANDS.items():
                used = cpu_seconds(arguments, folder)
                if turn:  # the first fills the caches of bytecode and of the disk
                    seconds[name].append(used)
    found = {name: {"median": round(statistics.median(values), 2), "least": round(min(values), 2),
                    "most": round(max(values), 2)} for name, values in seconds.items()}
    for name, figures in found.items():
        sys.stdout.write(f"{name:<14}{figures['median']:>8.2f} CPU-seconds ({figures['least']} to {figures['most']})\n")
    versions = {name: metadata.version(name) for name in ("torch", "prefect", "pydantic", "typer")}
    sys.stdout.write(json.dumps({**found, "rounds": rounds, "python": platform.python_version(), **versions}) + "\n")


if __name__ == "__main__":
    main()
