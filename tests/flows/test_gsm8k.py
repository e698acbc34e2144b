"""GSM8K's train set, whole, through `examples/gsm8k.yaml`, with the toy as reader and with a small real-text reader."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from flows.curate import curate
from saerl_core.config import load_config
from saerl_core.manifest import verify_manifest
from tests.conftest import ROOT


@pytest.mark.e2e
@pytest.mark.parametrize("reader", ["the toy", "mathmini"])
def test_gsm8k_is_curated_end_to_end(shared: Path, tmp_path: Path, reader: str) -> None:
    overrides = [f"data.path={shared / 'data' / 'gsm8k_train.jsonl.gz'}", f"workspace={tmp_path / 'out'}"]
    if reader == "mathmini":
        models = shared / "models"
        overrides += [f"features.model={models / 'mathmini'}", f"features.sae={models / 'mathmini-sae'}",
                      f"policy.model={models / 'mathmini'}"]
    curated = curate(load_config(ROOT / "examples" / "gsm8k.yaml", tuple(overrides)))
    header = verify_manifest(curated.manifest.path)
    assert header["prompts"]["read"] == header["prompts"]["kept"] + header["prompts"]["dropped"] == 7473
    ruled_out = sum(header["prompts"]["dropped_by_reason"].get(reason, 0) for reason in ("too_long", "near_duplicate"))
    assert curated.prompts_read_by_model == 7473 - ruled_out
    train = pl.read_parquet(curated.manifest.path / "train.parquet")
    assert train.height == header["batches"] * 64 == header["prompts"]["kept"]
    content = train["prompt"].list.last().struct.field("content")
    assert content.str.ends_with('output the final answer after "####".').all()
    page = (curated.manifest.path / "report.html").read_text()
    assert "7,473" in page
    if reader == "mathmini":  # the toy's text is all that the toy knows
        assert header["quality"]["used"]
        assert header["quality"]["auc"] > 0.9
