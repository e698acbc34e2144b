"""The toy's sparse autoencoder: TopK, trained by sae-lens on the model's own residual stream.

It reads the stream after layer 2 of 0-3, on prompts as the chat template renders them, and is saved in sae-lens's
own format, its input normalisation folded into the weights.

Tensor names: B = prompts, T = tokens of a padded prompt, N = tokens of all prompts together, D = model width,
S = SAE width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from saerl_core.toy.tokenizer import render_prompt

if TYPE_CHECKING:
    from sae_lens import SAE, TopKTrainingSAE

LAYER = 2
WIDTH = 1024
ACTIVE = 16
BATCH_TOKENS = 2048
_RATE, _RATE_END = 1e-3, 1e-4
_PROMPTS_PER_PASS = 250


@dataclass(frozen=True)
class SaeFigures:
    """How well an SAE reads given tokens."""

    explained_variance: float
    """1 − residual variance / variance, over all tokens and dimensions."""
    l0: float
    """Mean number of features that fire on a token."""
    dead_share: float
    """Share of the features that fire on none of the tokens."""


def read_residuals(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, problems: Sequence[str], *, layer: int = LAYER
) -> torch.Tensor:
    """The residual stream after `layer` (0-based) at every token of every rendered prompt: `[N, D]`, float32."""
    rows: list[torch.Tensor] = []
    with torch.inference_mode():
        for first in range(0, len(problems), _PROMPTS_PER_PASS):
            prompts = [render_prompt(tokenizer, text) for text in problems[first:first + _PROMPTS_PER_PASS]]
            batch = tokenizer(
                prompts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
            )
            mask_BT = batch["attention_mask"].bool()
            output = model.model(
                input_ids=batch["input_ids"], attention_mask=mask_BT, output_hidden_states=True, use_cache=False
            )
            assert output.hidden_states is not None
            rows.append(output.hidden_states[layer + 1][mask_BT])  # [0] is the embedding
    return torch.cat(rows).clone()  # a tensor made in inference mode cannot be trained on


def train_sae(
    residuals_ND: torch.Tensor,
    *,
    samples: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> TopKTrainingSAE:
    """Train a TopK SAE on `samples` tokens drawn from `residuals_ND`. Leaves torch's global generator as it was.

    Args:
        residuals_ND: What `read_residuals` gave.
        samples: Tokens to train on, in batches of 2,048; at least one batch.
        seed: Of the weights and of the order of tokens.
        progress: Called with (batches done, batches).
    """
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata

    steps = max(1, samples // BATCH_TOKENS)
    width_in = residuals_ND.shape[1]
    metadata = SAEMetadata(
        model_name="saerl:toy/lm",
        hook_name=f"blocks.{LAYER}.hook_resid_post",
        hf_hook_name=f"model.layers.{LAYER}",
        hook_layer=LAYER,
        prepend_bos=False,
        dataset_path="saerl:toy",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(
            d_in=width_in, d_sae=WIDTH, k=ACTIVE,
            normalize_activations="expected_average_only_in", metadata=metadata,
        ))
        trainer = SAETrainer(
            cfg=SAETrainerConfig(
                total_training_samples=steps * BATCH_TOKENS,
                train_batch_size_samples=BATCH_TOKENS,
                lr=_RATE,
                lr_end=_RATE_END,
                lr_warm_up_steps=min(20, steps // 10),
                lr_decay_steps=steps // 3,
                dead_feature_window=60,
                feature_sampling_window=steps,  # statistics over the whole run
                device="cpu",
            ),
            sae=sae,
            data_provider=_batches(residuals_ND),
        )
        # sae-lens's own `fit` draws bars on stderr, and estimates the norm from a sample; these are its steps.
        scale = width_in**0.5 / float(residuals_ND.norm(dim=-1).mean())
        trainer.activation_scaler.scaling_factor = scale
        for step in range(1, steps + 1):
            trainer.step(next(trainer.data_provider))
            trainer.n_training_steps = step
            if progress is not None:
                progress(step, steps)
        sae.fold_activation_norm_scaling_factor(scale)
    return sae.eval()


def save_sae(sae: TopKTrainingSAE, folder: Path) -> None:
    """Write `cfg.json` and `sae_weights.safetensors`, which `SAE.load_from_disk` reads as an inference SAE."""
    _, config = sae.save_inference_model(folder)
    # sae-lens writes the keys in an order that changes from process to process; the same SAE is to have the same hash.
    config.write_text(json.dumps(json.loads(config.read_text()), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_sae(folder: Path) -> SAE:
    """Read what `save_sae` wrote."""
    from sae_lens import SAE

    return SAE.load_from_disk(str(folder), device="cpu")


def measure_sae(sae: SAE, residuals_ND: torch.Tensor) -> SaeFigures:
    """Figures of an SAE over given tokens."""
    with torch.inference_mode():
        features_NS = sae.encode(residuals_ND)
        error = (sae.decode(features_NS) - residuals_ND).pow(2).sum()
        variance = (residuals_ND - residuals_ND.mean(dim=0)).pow(2).sum()
        fires_NS = features_NS > 0
        return SaeFigures(
            explained_variance=1 - float(error / variance),
            l0=float(fires_NS.sum(dim=1).float().mean()),
            dead_share=float((~fires_NS.any(dim=0)).float().mean()),
        )


def _batches(residuals_ND: torch.Tensor) -> Iterator[torch.Tensor]:
    """Endless batches of tokens, shuffled anew every epoch; rows are reused where there is less than a batch."""
    while True:
        order_N = torch.randperm(len(residuals_ND))
        if len(order_N) < BATCH_TOKENS:
            order_N = order_N.repeat(BATCH_TOKENS // len(order_N) + 1)
        for first in range(0, len(order_N) - BATCH_TOKENS + 1, BATCH_TOKENS):
            yield residuals_ND[order_N[first:first + BATCH_TOKENS]]
