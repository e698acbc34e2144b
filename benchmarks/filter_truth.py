"""How much of the toy's planted damage does curation find? The toy knows which rows are bad; curation never sees it.

    saerl curate && python -m benchmarks.filter_truth MANIFEST
    python -m benchmarks.filter_truth MANIFEST --pool POOL     # another pool of the toy's (benchmarks.grpo)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import polars as pl

from saerl_core.locations import resolve
from saerl_core.manifest import verify_manifest
from saerl_core.probes import spearman

_REASONS = {"dropped_as_bad": ["low_quality", "duplicate", "near_duplicate"], "suspected": ["suspect_answer"],
            "not_needed": ["too_easy", "too_hard", "not_selected", "beyond_steps", "remainder"]}
"""What a count holds: reasons in a manifest."""


def measure(manifest: Path, pool: Path) -> dict[str, object]:
    """How many of each defect were dropped, why, and difficulty against the true level."""
    verify_manifest(manifest)
    truth = pl.read_ndjson(pool)
    truth = truth.select("id", "defect", pl.col("level").alias("steps"))
    rows = pl.read_parquet(manifest / "scores.parquet").join(truth, on="id")
    found: dict[str, object] = {"manifest": manifest.name}
    for defect in ("", "garbled", "duplicate", "near_duplicate", "wrong_key"):
        these = rows.filter(pl.col("defect") == defect)
        found[defect or "intact"] = {"rows": these.height} | {
            name: int(these["dropped"].is_in(reasons).sum()) for name, reasons in _REASONS.items()}
    intact = rows.filter((pl.col("defect") == "") & pl.col("difficulty").is_not_null())
    rho = spearman(intact["difficulty"].to_numpy(), intact["steps"].to_numpy())
    found["difficulty_against_level_spearman"] = round(rho, 3)
    return found


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--pool", type=Path, default=resolve("saerl:toy/train.jsonl.gz", Path()),
                        help="The rows that were curated. Default: the toy's.")
    asked = parser.parse_args()
    found = measure(asked.manifest, asked.pool)
    for name, value in found.items():
        if isinstance(value, dict):
            sys.stdout.write(f"{name:<14} of {value['rows']:>5}: {value['dropped_as_bad']:>4} dropped as bad, "
                             f"{value['suspected']:>4} as suspect, {value['not_needed']:>4} for difficulty or budget\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
