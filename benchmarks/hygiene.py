"""What reading and marking a prompt file costs, in CPU seconds: python -m benchmarks.hygiene [ROWS]

Two files of word problems from the toy world: as they are (a few templates, only the numbers differ), and with three of
5,000 made-up words after every word (no templates). A hundredth of the rows is repeated with a word more.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from saerl_core import hygiene, prompts
from saerl_core.config import DataConfig, HygieneConfig
from saerl_core.toy.world import draw_problem

SOURCE = DataConfig(path="unused", preset="saerl")


def write_rows(path: Path, count: int, *, made_up_words: bool) -> int:
    """Write a file of `count` rows; returns how many of them repeat another."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(5000)]
    repeated = count // 100
    rows = []
    for number in range(count - repeated):
        problem = draw_problem(rng)
        text = problem.text
        if made_up_words:
            text = " ".join(" ".join((word, *rng.choices(words, k=3))) for word in text.split())
        rows.append({"id": str(number), "problem": text, "answer": str(problem.answer)})
    rows += [{**row, "id": f"again-{row['id']}", "problem": f"{row['problem']} Please"} for row in rows[:repeated]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return repeated


def measure(count: int, *, made_up_words: bool) -> dict[str, object]:
    """CPU seconds of reading and of marking, and what was marked."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        repeated = write_rows(file, count, made_up_words=made_up_words)
        started = time.process_time()
        table = prompts.read_table((file,), SOURCE, SOURCE)
        read = time.process_time()
        marked, _ = hygiene.mark(table, [], HygieneConfig())
        done = time.process_time()
    return {"rows": count, "templates": not made_up_words, "read_seconds": round(read - started, 2),
            "mark_seconds": round(done - read, 2), "repeated": repeated,
            "dropped": dict(marked["drop_reason"].drop_nulls().value_counts(sort=True).rows()),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)}


def main() -> None:
    """Measure both files; one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=100_000)
    for made_up_words in (False, True):
        found = measure(parser.parse_args().rows, made_up_words=made_up_words)
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
