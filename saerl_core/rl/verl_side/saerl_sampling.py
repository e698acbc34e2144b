"""One way to sample answers on plain transformers, shared by the CPU rollout, by labelling and by evaluation.

Every prompt brings its own random numbers, drawn from a seed that belongs to the prompt alone, and a token is chosen
by inverting the cumulative distribution at the step's number. So an answer does not depend on which other prompts
share its batch, on their order, or on what else ran in the process (floating-point noise apart), and two policies that
are compared on the same seed face the same luck.

Shapes: R rows (one per answer), U distinct prompts, T prompt tokens after padding, V vocabulary, L response tokens.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_COMPACT_BELOW = 0.75  # drop finished rows once fewer than this share of the batch is alive


@dataclass(frozen=True)
class SamplingRule:
    """How the next token is chosen."""

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = -1
    """Only the k most likely tokens; -1 or 0: all."""
    top_p: float = 1.0
    """Only the most likely tokens that hold this share of the probability."""

    @property
    def greedy(self) -> bool:
        return self.temperature <= 0


@dataclass(frozen=True)
class Answer:
    """One sampled response."""

    token_ids: list[int]
    """Includes the stop token, if there is one."""
    log_probs: list[float]
    """Natural log of each token's probability under the distribution it was drawn from (greedy: at temperature 1)."""
    finished: bool
    """False: the token limit cut it off."""


def answer_seed(seed: int, prompt: Sequence[int], sample: int = 0) -> int:
    """A 63-bit seed that belongs to this prompt's n-th answer."""
    text = f"{seed}/{sample}/{','.join(map(str, prompt))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@torch.inference_mode()
def sample_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    rule: SamplingRule,
    *,
    max_tokens: int,
    stop_ids: frozenset[int],
    pad_id: int,
) -> list[Answer]:
    """Sample one answer per row; rows with the same prompt share its forward pass.

    Args:
        model: a causal LM of transformers in evaluation mode.
        prompts: R token id lists, none empty.
        seeds: R seeds, see `answer_seed`. Not used when greedy.
        max_tokens: L, the longest answer.
        stop_ids: tokens that end an answer.
        pad_id: any valid token id; padded places are masked.
    """
    if not prompts:
        return []
    decoding = _neighbour("saerl_decoding")
    with decoding.grouped_attention(model):
        return _sample(model, prompts, seeds, rule, max_tokens, stop_ids, pad_id, decoding.make_room)


def _sample(
    model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], rule: SamplingRule, max_tokens: int,
    stop_ids: frozenset[int], pad_id: int, make_room: Callable[[Any, int], None],
) -> list[Answer]:
    device = model.device
    distinct, row_to_distinct = _distinct(prompts)
    ids_UT, mask_UT = _left_pad(distinct, pad_id, device)
    positions_UT = (mask_UT.cumsum(-1) - 1).clamp(min=0)
    only_last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    output = model(
        input_ids=ids_UT, attention_mask=mask_UT, position_ids=positions_UT, use_cache=True, **only_last
    )
    cache = output.past_key_values
    alive_R = torch.arange(len(prompts), device=device)  # row number of each sequence still in the batch
    cache, logits_RV, mask_RT, position_R = _select(
        torch.tensor(row_to_distinct, device=device), cache, output.logits[:, -1], mask_UT, positions_UT[:, -1]
    )
    make_room(cache, max_tokens)
    stops = torch.tensor(sorted(stop_ids), device=device)
    luck_RL = None if rule.greedy else _draw_luck(seeds, max_tokens, device)

    tokens_RL = torch.full((len(prompts), max_tokens), pad_id, device=device)
    log_probs_RL = torch.zeros((len(prompts), max_tokens), device=device)
    lengths_R = torch.zeros(len(prompts), dtype=torch.long, device=device)
    finished_R = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    done_R = torch.zeros(len(prompts), dtype=torch.bool, device=device)  # of the rows still in the batch

    for step in range(max_tokens):
        luck = None if luck_RL is None else luck_RL[alive_R, step]
        token_R, log_prob_R = _choose(logits_RV.float(), rule, luck)
        open_R = ~done_R
        rows = alive_R[open_R]
        tokens_RL[rows, step] = token_R[open_R]
        log_probs_RL[rows, step] = log_prob_R[open_R]
        lengths_R[rows] += 1
        done_R = done_R | torch.isin(token_R, stops)
        finished_R[alive_R] = done_R
        n_open = int((~done_R).sum())
        if n_open == 0 or step + 1 == max_tokens:
            break
        if n_open < _COMPACT_BELOW * len(done_R):
            keep = (~done_R).nonzero().squeeze(1)
            cache, token_R, mask_RT, position_R = _select(keep, cache, token_R, mask_RT, position_R)
            alive_R, done_R = alive_R[keep], done_R[keep]
        mask_RT = torch.cat([mask_RT, mask_RT.new_ones((len(mask_RT), 1))], dim=1)
        position_R = position_R + 1
        output = model(
            input_ids=token_R[:, None],
            attention_mask=mask_RT,
            position_ids=position_R[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        cache, logits_RV = output.past_key_values, output.logits[:, -1]

    tokens, log_probs = tokens_RL.tolist(), log_probs_RL.tolist()
    return [
        Answer(tokens[row][:length], log_probs[row][:length], finished)
        for row, (length, finished) in enumerate(zip(lengths_R.tolist(), finished_R.tolist(), strict=True))
    ]


def stop_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: the generation config's, the model config's, the tokenizer's."""
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return frozenset(found)


def _neighbour(name: str) -> Any:
    """A file beside this one, which is a module of a package here and a flat module in verl's interpreter."""
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


def _distinct(prompts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    place: dict[tuple[int, ...], int] = {}
    rows = [place.setdefault(tuple(prompt), len(place)) for prompt in prompts]
    return list(place), rows


def _left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids_UT = torch.full((len(prompts), width), pad_id)
    mask_UT = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_UT[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_UT[row, width - len(prompt) :] = 1
    return ids_UT.to(device), mask_UT.to(device)


def _select(index: torch.Tensor, cache: Any, *tensors: torch.Tensor) -> tuple[Any, ...]:
    """The rows `index` of the cache (changed in place) and of each tensor."""
    cache.batch_select_indices(index)
    return cache, *(tensor[index] for tensor in tensors)


def _draw_luck(seeds: Sequence[int], max_tokens: int, device: Any) -> torch.Tensor:
    """Uniform numbers in [0, 1), one row per answer. Drawn on the CPU, so every device has the same."""
    luck_RL = torch.empty((len(seeds), max_tokens))
    generator = torch.Generator()
    for row, seed in enumerate(seeds):
        generator.manual_seed(seed)
        luck_RL[row].uniform_(generator=generator)
    return luck_RL.to(device)


def _choose(
    logits_RV: torch.Tensor, rule: SamplingRule, luck_R: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each row and its log-probability."""
    if luck_R is None:
        token_R = logits_RV.argmax(-1)
        return token_R, logits_RV.log_softmax(-1).gather(1, token_R[:, None]).squeeze(1)
    log_probs_RV = truncate(logits_RV / rule.temperature, rule).log_softmax(-1)
    total_RV = log_probs_RV.double().exp().cumsum(-1)
    # The first token whose cumulative share exceeds the number: never one of probability zero.
    target_R1 = luck_R.double()[:, None] * total_RV[:, -1:]
    token_R1 = torch.searchsorted(total_RV, target_R1, right=True).clamp(max=logits_RV.shape[-1] - 1)
    return token_R1.squeeze(1), log_probs_RV.gather(1, token_R1).squeeze(1)


def truncate(logits_RV: torch.Tensor, rule: SamplingRule) -> torch.Tensor:
    """Logits with everything outside top-k and top-p set to -inf; the most likely token always stays."""
    if 0 < rule.top_k < logits_RV.shape[-1]:
        kth_R1 = logits_RV.topk(rule.top_k, dim=-1).values[:, -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < kth_R1, float("-inf"))
    if rule.top_p < 1:
        sorted_RV, order_RV = logits_RV.sort(dim=-1, descending=True)
        probs_RV = sorted_RV.softmax(-1)
        drop_RV = (probs_RV.cumsum(-1) - probs_RV) >= rule.top_p
        drop_RV[:, 0] = False
        logits_RV = logits_RV.masked_fill(torch.zeros_like(drop_RV).scatter(1, order_RV, drop_RV), float("-inf"))
    return logits_RV
