"""Prompts → pooled sparse feature rows: one truncated forward pass, encode, pool by prompt, only sparse rows leave.

Legend: B prompts in a batch, T tokens (padded), D residual width, N features that fire, over all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from saerl_core import backbone as backbones
from saerl_core.backbone import Backbone
from saerl_core.config import FeaturesConfig
from saerl_core.features import FeatureRows, concatenate, take
from saerl_core.models import render
from saerl_core.sae import Encode, load_encoder


def load_reader(model: Path, sae: Path, layer: int, config: FeaturesConfig) -> tuple[Backbone, Encode]:
    """Load the two halves of a reader: the truncated model and the SAE's encoder.

    Raises:
        ModelError: either cannot be loaded.
    """
    device = backbones.pick_device(config.device)
    dtype = backbones.pick_dtype(config.dtype, device)
    backbone = backbones.load_backbone(model, layer, device, dtype, trust_remote_code=config.trust_remote_code)
    return backbone, load_encoder(sae, device, dtype)


def extraction_parameters(config: FeaturesConfig, layer: int) -> dict[str, object]:
    """What, beside model and SAE, decides a feature row's value. Batching does not."""
    device = backbones.pick_device(config.device)
    return {
        "layer": layer,
        "max_tokens": config.max_tokens,
        "chat_template": config.chat_template,
        "sink_norm_ratio": config.sink_norm_ratio,
        "dtype": str(backbones.pick_dtype(config.dtype, device)),
    }


@torch.inference_mode()
def extract(backbone: Backbone, encode: Encode, d_sae: int, prompts: Sequence[list[dict[str, str]]],
            config: FeaturesConfig) -> FeatureRows:
    """Feature rows of prompts, in the order given.

    Args:
        backbone: The truncated reader.
        encode: The SAE's encoder.
        d_sae: Number of SAE features.
        prompts: Chat messages, one list a prompt.
        config: Token limit, template, batch budget, sink mask.
    """
    ids = [render(backbone.tokenizer, messages, chat_template=config.chat_template) for messages in prompts]
    cut = np.array([max(0, len(row) - config.max_tokens) for row in ids], dtype=np.int32)
    ids = [row[: config.max_tokens] for row in ids]
    batches = batch_by_length([len(row) for row in ids], config.tokens_per_batch)
    parts = [_extract_batch(backbone, encode, d_sae, [ids[i] for i in batch], config.sink_norm_ratio)
             for batch in batches]
    position = np.argsort([i for batch in batches for i in batch])
    rows = take(concatenate(parts), position)
    return FeatureRows(**{**vars(rows), "cut": cut})


def batch_by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group rows of similar length so that a padded batch stays within a token budget.

    Args:
        lengths: Tokens per row.
        budget: Most tokens in a batch, padding included; a longer row makes a batch of its own.

    Returns:
        Row numbers, longest first, each exactly once. Depends on nothing but the arguments.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def _extract_batch(backbone: Backbone, encode: Encode, d_sae: int, ids: list[list[int]],
                   sink_norm_ratio: float) -> FeatureRows:
    lengths_B = torch.tensor([len(row) for row in ids])
    ids_BT = torch.zeros(len(ids), max(1, int(lengths_B.max())), dtype=torch.long)
    for row, tokens in enumerate(ids):
        ids_BT[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    ids_BT, lengths_B = ids_BT.to(backbone.device), lengths_B.to(backbone.device)
    real_BT = torch.arange(ids_BT.shape[1], device=backbone.device) < lengths_B[:, None]
    h_BTD = backbones.residual_stream(backbone, ids_BT)
    keep_BT = real_BT & ~_sinks(h_BTD, real_BT, sink_norm_ratio)
    if (bos := backbone.tokenizer.bos_token_id) is not None:
        keep_BT &= ids_BT != bos
    prompt_T = keep_BT.nonzero()[:, 0]
    values_N, token_N, feature_N = encode(h_BTD[keep_BT])
    tokens_B = keep_BT.sum(1)
    return _pool(values_N, prompt_T[token_N], feature_N, tokens_B, (real_BT & ~keep_BT).sum(1), d_sae)


def _sinks(h_BTD: torch.Tensor, real_BT: torch.Tensor, ratio: float) -> torch.Tensor:
    """Attention sinks: tokens whose residual norm exceeds `ratio` times their own prompt's median.

    The median is the prompt's, not the batch's, so that a row does not depend on its neighbours in the batch.
    """
    norm_BT = h_BTD.float().norm(dim=-1).masked_fill(~real_BT, float("nan"))
    return norm_BT > ratio * norm_BT.nanmedian(dim=1, keepdim=True).values


def _pool(values_N: torch.Tensor, prompt_N: torch.Tensor, feature_N: torch.Tensor, tokens_B: torch.Tensor,
          masked_B: torch.Tensor, d_sae: int) -> FeatureRows:
    """Sum and maximum per (prompt, feature) pair, without a dense [B, d_sae] matrix."""
    pair_M, where_N = torch.unique(prompt_N * d_sae + feature_N, return_inverse=True)
    sum_M = torch.zeros(len(pair_M), device=values_N.device).index_add_(0, where_N, values_N)
    max_M = torch.zeros_like(sum_M).scatter_reduce_(0, where_N, values_N, "amax")
    prompt_M = pair_M // d_sae
    mean_M = sum_M / tokens_B[prompt_M]
    counts_B = torch.bincount(prompt_M, minlength=len(tokens_B))
    return FeatureRows(
        indptr=np.concatenate([[0], counts_B.cumsum(0).cpu().numpy()]).astype(np.int64),
        indices=(pair_M % d_sae).to(torch.int32).cpu().numpy(),
        mean=mean_M.cpu().numpy(),
        max=max_M.cpu().numpy(),
        tokens=tokens_B.to(torch.int32).cpu().numpy(),
        masked=masked_B.to(torch.int32).cpu().numpy(),
        cut=np.zeros(len(tokens_B), dtype=np.int32),
        d_sae=d_sae,
    )
