"""Stage `cluster`: features → cluster of each prompt, centroids, and cards that say what each cluster is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.numpy

from saerl_core import artifact, clusters
from saerl_core.artifact import ArtifactRef
from saerl_core.config import ClustersConfig
from tasks.caching import stage
from tasks.extract import load_rows

ARRAYS = "clusters.safetensors"
CARDS = "cards.json"


@stage("cluster", clusters.VERSION)
def cluster(root: Path, features: ArtifactRef, config: ClustersConfig) -> ArtifactRef:
    """Cluster the usable prompts."""
    rows = load_rows(features)
    found = clusters.cluster(rows, config)
    with artifact.staging(root / "artifacts") as staged:
        arrays = {"labels": found.labels, "similarity": found.similarity, "centroids": found.centroids,
                  "idf": found.idf}
        (staged / ARRAYS).write_bytes(safetensors.numpy.save(arrays))
        artifact.write_json(staged / CARDS, {"iterations": found.iterations,
                                             "cards": [asdict(card) for card in clusters.cards(rows, found)]})
        return artifact.seal(staged, "clusters", {"stage": "cluster", "k": len(found.centroids)})


def load_labels(ref: ArtifactRef) -> np.ndarray:
    """int32 [n]: the cluster of each usable prompt."""
    return safetensors.numpy.load_file(ref.path / ARRAYS)["labels"]
