"""Prompts → pooled sparse feature rows: one truncated forward pass, encode, pool by prompt, only sparse rows leave.

Legend: B prompts in a batch, T tokens (padded), D residual width, N features that fire, over all tokens, M tokens whose
reconstruction is measured; in pooling, C cells (a prompt's feature, whether it fires or not), M those that fire.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from saerl_core import backbone as backbones
from saerl_core.backbone import Backbone, Beginning
from saerl_core.config import FeaturesConfig
from saerl_core.encoders import load_encoder
from saerl_core.errors import ModelError
from saerl_core.features import FeatureRows, concatenate, take
from saerl_core.models import render, render_all
from saerl_core.sae import Sae
from saerl_core.top_k import Entries

FVU_TOKENS = 16
"""Most tokens of a prompt on which the SAE's reconstruction is measured: enough for the health of a data set."""
_WORTH_SHARING = 8
"""Tokens that a template must put before every prompt for it to pay that they are read once."""
_POOL_ELEMENTS = 1 << 22
"""Most elements of a pooling buffer: 16 MiB in float32."""

logger = logging.getLogger(__name__)


def load_reader(model: Path, sae: Path, layer: int, config: FeaturesConfig) -> tuple[Backbone, Sae]:
    """Load the two halves of a reader: the truncated model and the SAE, or the control in its place.

    Raises:
        ModelError: either cannot be loaded.
    """
    device = backbones.pick_device(config.device)
    dtype = backbones.pick_dtype(config.dtype, device)
    backbone = backbones.load_backbone(model, layer, device, dtype, trust_remote_code=config.trust_remote_code)
    return backbone, load_encoder(sae, config, device, dtype)


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


def extract(backbone: Backbone, sae: Sae, prompts: Sequence[list[dict[str, str]]],
            config: FeaturesConfig) -> FeatureRows:
    """Feature rows of prompts, in the order given.

    Args:
        backbone: The truncated reader.
        sae: From `load_reader`.
        prompts: Chat messages, one list a prompt.
        config: Token limit, template, batch budget, sink mask.
    """
    return extract_tokens(backbone, sae, render_all(backbone.tokenizer, prompts, chat_template=config.chat_template),
                          config)


@torch.inference_mode()
def extract_tokens(backbone: Backbone, sae: Sae, ids: Sequence[list[int]], config: FeaturesConfig) -> FeatureRows:
    """The same for prompts that are token ids already.

    Raises:
        ModelError: the device's memory does not even hold one prompt.
    """
    cut = np.array([max(0, len(row) - config.max_tokens) for row in ids], dtype=np.int32)
    ids = [row[: config.max_tokens] for row in ids]
    before, after = _frame(backbone, chat_template=config.chat_template)
    frame = len(before), len(after)
    beginning = backbones.read_beginning(backbone, before) if len(before) >= _WORTH_SHARING else None
    budget = backbones.token_budget(backbone, config.tokens_per_batch)
    left, rows, order, parts = list(range(len(ids))), [], [], []
    while left:
        try:
            for batch in batch_by_length([len(ids[i]) for i in left], budget):
                rows = [left[i] for i in batch]
                parts.append(_extract_batch(backbone, sae, [ids[i] for i in rows], beginning, frame,
                                            config.sink_norm_ratio))
                order += rows
            left = []
        except torch.OutOfMemoryError as error:
            done = set(order)
            left = [i for i in left if i not in done]
            longest = len(ids[rows[0]])
            if len(rows) == 1:
                raise ModelError(f"the device has no memory for a prompt of {longest} tokens: lower "
                                 "features.max_tokens, or set features.device: cpu") from error
            budget = max(longest * len(rows) // 2, longest)
            logger.warning("the device ran out of memory; going on with %d tokens a batch", budget)
        if left:  # outside the handler, where the error no longer holds on to the batch's tensors
            torch.cuda.empty_cache()
    found = take(concatenate(parts), np.argsort(order))
    return FeatureRows(**{**vars(found), "cut": cut})


def batch_by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group rows of similar length so that a padded batch stays within a token budget.

    A batch that holds a quarter of the budget also ends where the rows are a tenth shorter than its first one: there
    padding costs more than one batch more.

    Args:
        lengths: Tokens per row.
        budget: Most tokens in a batch, padding included; a longer row makes a batch of its own.

    Returns:
        Row numbers, longest first, each exactly once. Depends on nothing but the arguments.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or _ends(lengths[batches[-1][0]], len(batches[-1]), lengths[i], budget):
            batches.append([])
        batches[-1].append(i)
    return batches


def _ends(longest: int, rows: int, following: int, budget: int) -> bool:
    """Whether a batch is better ended than given one more row."""
    return longest * (rows + 1) > budget or (longest * rows >= budget / 4 and following < 0.9 * longest)


def _frame(backbone: Backbone, *, chat_template: bool) -> tuple[list[int], list[int]]:
    """The tokens that the template puts before and after every message, whatever it says."""
    one, other = (render(backbone.tokenizer, [{"role": "user", "content": text}], chat_template=chat_template)
                  for text in ("a", "7 b"))
    return one[: _common(one, other)], one[len(one) - _common(one[::-1], other[::-1]) :]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _extract_batch(backbone: Backbone, sae: Sae, ids: list[list[int]], beginning: Beginning | None,
                   frame: tuple[int, int], sink_norm_ratio: float) -> FeatureRows:
    ids_BT, real_BT = pad(ids, backbone.device)
    shared = beginning if beginning and all(_begins(row, beginning.ids) for row in ids) else None
    h_BTD = backbones.residual_stream(backbone, ids_BT, shared)
    keep_BT = pooled_tokens(h_BTD, ids_BT, real_BT, backbone.bos, sink_norm_ratio)
    h_TD, prompt_T, tokens_B = h_BTD[keep_BT], keep_BT.nonzero()[:, 0], keep_BT.sum(1)
    entries = sae.encode(h_TD)
    values_N, token_N, feature_N = entries
    place_BT, behind_BT = real_BT.cumsum(1) - 1, real_BT.flip(1).cumsum(1).flip(1)
    content_BT = (place_BT >= frame[0]) & (behind_BT > frame[1])
    fvu_B = _fvu(sae, h_TD, prompt_T, content_BT[keep_BT], entries, len(ids))
    return _pool(values_N, prompt_T[token_N], feature_N, tokens_B, (real_BT & ~keep_BT).sum(1), fvu_B, sae.d_sae)


def _begins(row: Sequence[int], beginning: tuple[int, ...]) -> bool:
    """Whether a row begins so, and goes on."""
    return len(row) > len(beginning) and tuple(row[: len(beginning)]) == beginning


def pad(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids_BT, padded on the right; real_BT, true where a token is no padding)."""
    lengths_B = torch.tensor([len(row) for row in ids])
    ids_BT = torch.zeros(len(ids), max(1, int(lengths_B.max())), dtype=torch.long)
    for row, tokens in enumerate(ids):
        ids_BT[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    return ids_BT.to(device), (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).to(device)


def pooled_tokens(h_BTD: torch.Tensor, ids_BT: torch.Tensor, real_BT: torch.Tensor, bos: int | None,
                  sink_norm_ratio: float) -> torch.Tensor:
    """bool [B, T]: the tokens that count, which is all but padding, BOS and attention sinks.

    A sink is a token whose residual norm exceeds `sink_norm_ratio` times its own prompt's median.
    """
    norm_BT = h_BTD.float().norm(dim=-1).masked_fill(~real_BT, float("nan"))
    sink_BT = norm_BT > sink_norm_ratio * norm_BT.nanmedian(dim=1, keepdim=True).values
    keep_BT = real_BT & ~sink_BT
    return keep_BT if bos is None else keep_BT & (ids_BT != bos)


def _fvu(sae: Sae, h_TD: torch.Tensor, prompt_T: torch.Tensor, content_T: torch.Tensor, entries: Entries,
         prompts: int) -> torch.Tensor:
    """Fraction of variance unexplained (FVU), [B]: the reconstruction's squared error over the distance to the mean.

    Measured on at most `FVU_TOKENS` of each prompt's own words, evenly spaced: what the template adds is the same in
    every prompt, often far from all words, and would hide how well the words are read. The mean is that of the
    prompt's sampled tokens, so the figure, like the rest of the row, depends on nothing but the prompt. NaN where fewer
    than two tokens are left, or the SAE cannot decode.
    """
    if sae.decode is None:
        return torch.full((prompts,), float("nan"))
    length_B = torch.bincount(prompt_T[content_T], minlength=prompts)
    rank_T = content_T.cumsum(0) - 1 - (length_B.cumsum(0) - length_B)[prompt_T]
    length_T = length_B[prompt_T].clamp(min=1)
    sampled_T = content_T & ((rank_T + 1) * FVU_TOKENS // length_T > rank_T * FVU_TOKENS // length_T)
    values_N, token_N, feature_N = entries
    sampled_N = sampled_T[token_N]
    position_T = sampled_T.cumsum(0) - 1
    x_MD, prompt_M = h_TD[sampled_T].float(), prompt_T[sampled_T]
    found_MD = sae.decode((values_N[sampled_N], position_T[token_N[sampled_N]], feature_N[sampled_N]), len(x_MD))

    def per_prompt(of_M: torch.Tensor) -> torch.Tensor:
        return of_M.new_zeros(prompts, *of_M.shape[1:]).index_add_(0, prompt_M, of_M)

    mean_BD = per_prompt(x_MD) / length_B.clamp(1, FVU_TOKENS)[:, None]
    error_B = per_prompt((x_MD - found_MD.float()).square().sum(1))
    variance_B = per_prompt((x_MD - mean_BD[prompt_M]).square().sum(1))
    return torch.where(length_B > 1, error_B / variance_B, float("nan"))


def _pool(values_N: torch.Tensor, prompt_N: torch.Tensor, feature_N: torch.Tensor, tokens_B: torch.Tensor,
          masked_B: torch.Tensor, fvu_B: torch.Tensor, d_sae: int) -> FeatureRows:
    """Sum and maximum per (prompt, feature) pair: in dense [prompts, d_sae] buffers, for a few prompts at a time."""
    prompts = len(tokens_B)
    step = max(1, _POOL_ELEMENTS // d_sae)
    starts = torch.arange(0, prompts, step)
    cuts = [*torch.searchsorted(prompt_N, starts.to(prompt_N)).tolist(), len(prompt_N)]  # tokens are prompt by prompt
    pairs, sums, maxima = [], [], []
    for start, first, last in zip(starts.tolist(), cuts[:-1], cuts[1:], strict=True):
        cell_N = (prompt_N[first:last] - start) * d_sae + feature_N[first:last]
        sum_C = values_N.new_zeros(min(step, prompts - start) * d_sae).index_add_(0, cell_N, values_N[first:last])
        max_C = torch.zeros_like(sum_C).scatter_reduce_(0, cell_N, values_N[first:last], "amax")
        pair_M = max_C.nonzero()[:, 0]
        pairs.append(pair_M + start * d_sae)
        sums.append(sum_C[pair_M])
        maxima.append(max_C[pair_M])
    pair_M = torch.cat(pairs)
    prompt_M = pair_M // d_sae
    mean_M = torch.cat(sums) / tokens_B[prompt_M]
    counts_B = torch.bincount(prompt_M, minlength=prompts)
    return FeatureRows(
        indptr=np.concatenate([[0], counts_B.cumsum(0).cpu().numpy()]).astype(np.int64),
        indices=(pair_M % d_sae).to(torch.int32).cpu().numpy(),
        mean=mean_M.cpu().numpy(),
        max=torch.cat(maxima).cpu().numpy(),
        tokens=tokens_B.to(torch.int32).cpu().numpy(),
        masked=masked_B.to(torch.int32).cpu().numpy(),
        cut=np.zeros(prompts, dtype=np.int32),
        fvu=fvu_B.to(torch.float32).cpu().numpy(),
        d_sae=d_sae,
    )
