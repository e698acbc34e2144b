"""Which reference answers can no response meet, and which given zeros are the grader's? Counted on real files.

    python -m benchmarks.verifiers FILE.jsonl.gz ... [--answer answer] [--pass-rate pass_rate]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from saerl_core import labels
from saerl_core.config import PolicyConfig
from saerl_core.readers import read_rows
from saerl_core.rl import verifiers


def measure(path: Path, answer: str, pass_rate: str) -> dict[str, object]:
    """Counts of one file; a row without a pass rate counts as unlabelled."""
    rows = [row.record for row in read_rows([path])]
    answers = [str(row[answer]) for row in rows]
    rate = np.array([row.get(pass_rate) for row in rows], dtype=float)
    found: dict[str, object] = {"file": path.name, "rows": len(rows), "distinct_answers": len(set(answers))}
    for name in ("exact", "math"):
        started = time.process_time()
        refused, _ = verifiers.unverifiable(answers, verifiers.load(PolicyConfig(model="", verifier=name), Path()))
        found[name] = {"unverifiable": int(refused.sum()), "cpu_seconds": round(time.process_time() - started, 2)}
    labelled = ~np.isnan(rate)
    marked = labels.doubt_given(np.zeros(len(rate)), answers)
    found["given"] = {
        "labelled": int(labelled.sum()),
        "zeros": int((rate == 0).sum()),
        "doubtful": int(labels.doubt_given(rate, answers).sum()),
        "zeros_among_marked_keys": _share(rate[labelled & marked] == 0),
        "zeros_among_plain_keys": _share(rate[labelled & ~marked] == 0),
    }
    return found


def _share(hits: np.ndarray) -> float | None:
    return round(float(hits.mean()), 3) if len(hits) else None


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--answer", default="answer")
    parser.add_argument("--pass-rate", default="pass_rate")
    asked = parser.parse_args()
    found = [measure(path, asked.answer, asked.pass_rate) for path in asked.files]
    for counts in found:
        for name, value in counts.items():
            sys.stdout.write(f"{name:<18}{value}\n")
        sys.stdout.write("\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
