"""What an arm costs, in floating-point operations, counted from tokens and parameters.

A forward pass over a token costs 2 operations a parameter, a backward pass 4 (Kaplan et al. 2020, arXiv 2001.08361);
attention over earlier tokens is left out on all sides. An input embedding is looked up, not multiplied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import safe_open

_LEARNED = ("ridge", "elastic_net")
_FROM_FEATURES = (*_LEARNED, "active_features", "activation_mass")


@dataclass(frozen=True)
class Size:
    """Parameters of a model that multiply something."""

    layers: int
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
                    blocks += _product(shape)
    return Size(layers=int(config["num_hidden_layers"]), blocks=blocks,
                head=int(config["vocab_size"]) * int(config["hidden_size"]))


def curation_flops(header: Mapping[str, Any], reader: Size, policy: Size, answer_tokens: float) -> float:
    """What a manifest cost: reading the prompts through the SAE and answering for the labels, as far as its settings
    use either.

    Args:
        header: The manifest's.
        reader: Of the model that was read.
        policy: Of the model that answered.
        answer_tokens: Mean length of the policy's answers.
    """
    settings, model, sae = header["settings"], header["inputs"]["model"], header["inputs"]["sae"]
    prompts, tokens = header["health"]["prompts"], header["health"]["tokens"]
    per_prompt = tokens / prompts
    method, quality, schedule = settings["difficulty"]["method"], settings["quality"], settings["schedule"]
    probed = quality["method"] not in ("none", "random")
    read = 0.0
    if method in _FROM_FEATURES or probed or schedule["clusters_per_batch"] or settings["coverage"]["budget"]:
        read += tokens
    if probed and quality["labels"] == "corruptions":
        read += per_prompt * header["quality"].get("bad", 0)
    share = (model["layer"] + 1) / model["layers"]
    flops = read * (2.0 * reader.blocks * share + 2.0 * model["d_model"] * sae["d_sae"])
    if method in _LEARNED and header["labels"]["samples"]:
        flops += header["labels"]["count"] * header["labels"]["samples"] * (per_prompt + answer_tokens) * policy.forward
    if method == "nll":
        flops += tokens * policy.forward
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


def _product(shape: list[int]) -> int:
    found = 1
    for length in shape:
        found *= length
    return found
