"""The toy's sparse autoencoder: TopK, trained by sae-lens on the model's own residual stream.

It reads the stream after layer 2 of 0-3, on prompts as the chat template renders them, and is saved in sae-lens's
own format, its input normalisation folded into the weights.

Tensor names: B = prompts, T = tokens of a padded prompt, N = tokens of all prompts together, D = model width,
S = SAE width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from saerl_core.sae_training.figures import Reconstruction, measure_reconstruction
from saerl_core.sae_training.trainer import finish, make_trainer, norm_scale, take_step
from saerl_core.toy.tokenizer import render_prompt

if TYPE_CHECKING:
    from sae_lens import SAE, TopKTrainingSAE

LAYER = 2
WIDTH = 1024
ACTIVE = 16
BATCH_TOKENS = 2048
_RATE = 1e-3
_PROMPTS_PER_PASS = 250


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
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    steps = max(1, samples // BATCH_TOKENS)
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
            d_in=residuals_ND.shape[1], d_sae=WIDTH, k=ACTIVE,
            normalize_activations="expected_average_only_in", metadata=metadata,
        ))
        trainer = make_trainer(
            sae, steps=steps, batch_tokens=BATCH_TOKENS, learning_rate=_RATE, warm_up_steps=min(20, steps // 10),
            decay_steps=steps // 3, dead_window=60, scale=norm_scale(residuals_ND),
        )
        for step, batch_ND in enumerate(islice(_batches(residuals_ND), steps), start=1):
            take_step(trainer, batch_ND)
            if progress is not None:
                progress(step, steps)
        finish(trainer)
    return sae


def load_sae(folder: Path) -> SAE:
    """Read the SAE in `folder`."""
    from sae_lens import SAE

    return SAE.load_from_disk(str(folder), device="cpu")


def measure_sae(sae: SAE, residuals_ND: torch.Tensor) -> Reconstruction:
    """Figures of an SAE over given tokens."""
    return measure_reconstruction(sae, [residuals_ND])


def _batches(residuals_ND: torch.Tensor) -> Iterator[torch.Tensor]:
    """Endless batches of tokens, shuffled anew every epoch; rows are reused where there is less than a batch."""
    while True:
        order_N = torch.randperm(len(residuals_ND))
        if len(order_N) < BATCH_TOKENS:
            order_N = order_N.repeat(BATCH_TOKENS // len(order_N) + 1)
        for first in range(0, len(order_N) - BATCH_TOKENS + 1, BATCH_TOKENS):
            yield residuals_ND[order_N[first:first + BATCH_TOKENS]]
