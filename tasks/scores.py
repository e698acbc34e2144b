"""How the two scoring stages keep what they found: a score for each usable prompt, a report, a probe if it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from saerl_core import artifact
from saerl_core.artifact import ArtifactRef
from saerl_core.probes import Probe, write_probe

_SCORES = "scores.safetensors"
_REPORT = "report.json"


def seal_scores(root: Path, kind: str, scores: np.ndarray, report: dict[str, Any], probe: Probe | None) -> ArtifactRef:
    """Keep a stage's scores (float32 [n]), its report and its probe."""
    with artifact.staging(root / "artifacts") as staged:
        (staged / _SCORES).write_bytes(safetensors.numpy.save({"scores": scores.astype(np.float32)}))
        artifact.write_json(staged / _REPORT, report)
        if probe is not None:
            write_probe(staged / "probe.safetensors", probe)
        return artifact.seal(staged, kind, {"stage": kind, "used": probe is not None})


def load_scores(ref: ArtifactRef) -> tuple[np.ndarray, dict[str, Any]]:
    """(scores float32 [n], report)."""
    scores = safetensors.numpy.load_file(ref.path / _SCORES)["scores"]
    return scores, json.loads((ref.path / _REPORT).read_text(encoding="utf-8"))
