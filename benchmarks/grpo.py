"""Does curation help? Draw the toy benchmark's pool, then compare the arms of `grpo.yaml` on it.

    python -m benchmarks.grpo [--set SECTION.FIELD=VALUE ...] [--json]

What follows the module's name goes to `saerl compare`. The whole grid takes hours on two cores; what is done is not
done again. For a look at two arms: `--set 'compare.arms={vanilla: {}, saerl: {}}' --set 'compare.seeds=[100]'`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from saerl_core.config import load_config
from saerl_core.toy.build import draw_benchmark
from saerl_core.toy.data import Shares, write_rows

POOL_SEED = 1
POOL_ROWS, HELDOUT_ROWS = 2600, 1000
SHARES = Shares(wrong_key=0.12, garbled=0.08, duplicate=0.01, near_duplicate=0.04)
CONFIG = Path(__file__).with_name("grpo.yaml")


def draw_pool() -> None:
    """Write the pool and the held-out problems where they are missing."""
    config = load_config(CONFIG)
    assert config.data.heldout is not None
    places = [config.resolve(source.path) for source in (config.data, config.data.heldout)]
    if not all(place.exists() for place in places):
        for place, rows in zip(places, draw_benchmark(POOL_SEED, POOL_ROWS, HELDOUT_ROWS, SHARES), strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_rows(rows, place)


def main() -> None:
    """Run the comparison on the pool."""
    draw_pool()
    sys.exit(subprocess.run([sys.executable, "-m", "flows.cli", "compare", str(CONFIG), *sys.argv[1:]],
                            check=False).returncode)


if __name__ == "__main__":
    main()
