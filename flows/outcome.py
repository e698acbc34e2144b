"""What a run gives back: one plain dictionary, printed as a table or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saerl_core.manifest import read_manifest


def manifest_figures(manifest: Path) -> dict[str, Any]:
    """The figures of a manifest that every outcome begins with."""
    header = read_manifest(manifest)
    return {"manifest": str(manifest), "id": header["id"], "prompts": header["prompts"], "batches": header["batches"],
            "batch_size": header["batch_size"]}
