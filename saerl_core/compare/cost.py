"""What an arm costs, in floating-point operations, counted from tokens and parameters.

A forward pass over a token costs 2 operations a parameter, a backward pass 4 (Kaplan et al. 2020, arXiv 2001.08361);
attention over earlier tokens is left out on all sides. An input embedding is looked up, not multiplied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import safe_open

from saerl_core.config import RunConfig

_FROM_FEATURES = ("ridge", "elastic_net", "active_features", "activation_mass")


@dataclass(frozen=True)
class Size:
    """Parameters of a model that multiply something."""

    blocks: int
    """all layers together"""
    head: int

    @property
    def forward(self) -> float:
        """Operations of a forward pass over one token."""
        return 2.0 * (self.blocks + self.head)


def model_size(folder: Path) -> Size:
    """Count a model's parameters from the headers of its files; no weight is read."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    blocks = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  # safe_open is no mapping
                shape = weights.get_slice(name).get_shape()
                if "embed" not in name and "lm_head" not in name:
                    blocks += math.prod(shape)
    return Size(blocks=blocks, head=int(config["vocab_size"]) * int(config["hidden_size"]))


def curation_flops(config: RunConfig, header: Mapping[str, Any], reader: Size, policy: Size,
                   answer_tokens: float) -> float:
    """What a manifest cost: reading the prompts through the SAE, likelihoods and answers for the keys, as far as its
    config uses each, and answering for the labels, whatever they are used for.

    Args:
        config: The arm's.
        header: The manifest's.
        reader: Of the model that was read.
        policy: Of the model that answered.
        answer_tokens: Mean length of the policy's answers.
    """
    model, sae, tokens = header["inputs"]["model"], header["inputs"]["sae"], header["health"]["tokens"]
    per_prompt = tokens / header["health"]["prompts"]
    method, quality = config.difficulty.method, config.quality
    read = 0.0
    if (method in _FROM_FEATURES or quality.fitted or config.schedule.clusters_per_batch or config.coverage.budget
            or config.hygiene.sae_similarity):
        read += tokens
    if quality.damages:
        read += per_prompt * header["quality"]["bad"]
    share = (model["layer"] + 1) / model["layers"]
    flops = read * (2.0 * reader.blocks * share + 2.0 * model["d_model"] * sae["d_sae"])
    labels = header["labels"]
    if labels["samples"]:  # doubtful ones were answered too
        answers = (labels["count"] + labels["doubtful"]) * labels["samples"]
        flops += answers * (per_prompt + answer_tokens) * policy.forward
    if method == "nll" or quality.keys_by == "likelihood":
        flops += tokens * policy.forward
    if quality.keys_by == "agreement":  # sampled, and read once more where rewards differ
        found = header["suspicion"]
        answers = quality.agreement_samples * (found["looked_at"] + found["judged"])
        flops += answers * (per_prompt + answer_tokens) * policy.forward
    return flops


def training_flops(metrics: pl.DataFrame, policy: Size, answers: int) -> list[float]:
    """Sampling and updating, step by step.

    Args:
        metrics: verl's (`rl.metrics.read_metrics`), a row a step.
        policy: Of the model that is trained.
        answers: Answers a step.
    """
    tokens = (metrics["response_length/mean"] + metrics["prompt_length/mean"]) * answers
    return [4.0 * policy.forward * count for count in tokens.to_list()]
