"""Stage `cluster`: features → cluster of each prompt, centroids, and cards that say what each cluster is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from saerl_core import artifact, clusters, drift
from saerl_core.artifact import ArtifactRef
from saerl_core.clusters import Codebook, read_codebook
from saerl_core.config import ClustersConfig, RunConfig
from saerl_core.errors import ConfigError
from saerl_core.manifest import CODEBOOK, verify_manifest
from tasks.caching import stage
from tasks.extract import load_rows
from tasks.progress import Progress

LABELS = "labels.safetensors"
CARDS = "cards.json"


@stage("cluster", clusters.VERSION)
def cluster(root: Path, features: ArtifactRef, config: ClustersConfig, previous: ArtifactRef | None) -> ArtifactRef:
    """Cluster the usable prompts, or assign them to the clusters of a previous manifest (see `find_previous`)."""
    rows = load_rows(features)
    progress, moved = Progress("choose k", "numbers of clusters"), None
    if previous is None:
        found = clusters.cluster(rows, config, progress)
    else:
        found, moved = drift.recluster(rows, read_codebook(previous.path), config, progress)
    about = {
        "iterations": found.iterations,
        "choice": asdict(found.choice) if found.choice else None,
        "previous": previous.sha256 if previous else None,
        "drift": asdict(moved) if moved else None,
        "kept": found.iterations == 0,
        "cards": [asdict(card) for card in clusters.cards(rows, found)],
    }
    with artifact.staging(root / "artifacts") as staged:
        (staged / LABELS).write_bytes(safetensors.numpy.save({"labels": found.labels, "similarity": found.similarity}))
        (staged / CODEBOOK).write_bytes(clusters.codebook_bytes(found.codebook))
        artifact.write_json(staged / CARDS, about)
        return artifact.seal(staged, "clusters", {"stage": "cluster", "k": len(found.codebook.centroids)})


def find_previous(config: RunConfig, encoder_hash: str, model_hash: str | None = None,
                  layer: int | None = None) -> ArtifactRef | None:
    """The codebook of `clusters.previous`; None where none is named.

    Args:
        config: Names the manifest.
        encoder_hash: Of this run's SAE, or of the control in its place, with which the manifest must have been made.
        model_hash: Of this run's reader, likewise; None where it is not known yet.
        layer: The layer that is read, likewise.

    Raises:
        ConfigError: the manifest was made from other features, or by a SAERL that did not keep its clusters.
        ArtifactError: it is no manifest, or not intact.
    """
    if config.clusters.previous is None:
        return None
    folder = config.resolve(config.clusters.previous)
    header = verify_manifest(folder)
    made = header["inputs"]
    for what, here, there in (("features.encoder is not the one", config.features.encoder,
                               header["settings"]["features"].get("encoder", "sae")),
                              ("features.sae is not the SAE", encoder_hash, made["sae"]["sha256"]),
                              ("features.model is not the reader", model_hash, made["model"]["sha256"]),
                              ("features.layer is not the layer", layer, made["model"]["layer"])):
        if here is not None and here != there:
            raise ConfigError(f"clusters.previous = {config.clusters.previous!r}: {what} with which that manifest was "
                              "made, so its clusters mean nothing here; set clusters.previous: null")
    if CODEBOOK not in header["files"]:
        raise ConfigError(f"clusters.previous = {config.clusters.previous!r}: that manifest holds no {CODEBOOK}; "
                          "curate it again, or set clusters.previous: null")
    entry = header["files"][CODEBOOK]
    return ArtifactRef(path=folder / CODEBOOK, sha256=entry["sha256"], size=entry["size"])


def load_labels(ref: ArtifactRef) -> np.ndarray:
    """int32 [n]: the cluster of each usable prompt."""
    return safetensors.numpy.load_file(ref.path / LABELS)["labels"]


def load_codebook(ref: ArtifactRef) -> Codebook:
    """What assigns a prompt to a cluster."""
    return read_codebook(ref.path / CODEBOOK)


def load_about(ref: ArtifactRef) -> dict[str, Any]:
    """Cards, how k was chosen, and drift: plain JSON."""
    return json.loads((ref.path / CARDS).read_text(encoding="utf-8"))


def describe(ref: ArtifactRef) -> str:
    """A few words for the log line."""
    about = load_about(ref)
    words = f"k = {len(about['cards'])}"
    if about["choice"]:
        words += ", chosen by stability"
    if about["drift"]:
        figures = about["drift"]
        words += (f", {'kept from' if about['kept'] else 'anew after'} a previous manifest (similarity "
                  f"-{figures['similarity_drop']:.1%}, share divergence {figures['share_divergence']:.3f})")
    return words
