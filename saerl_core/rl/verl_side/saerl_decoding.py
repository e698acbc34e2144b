"""transformers' attention and cache, without the copies that it makes of the cache for every token.

One token at a time, attention is bound by memory. transformers repeats the keys and values of grouped-query attention
until every head has its own, and appends a token by copying all tokens before it. Here the heads of a group are rows
of one query, and the cache has room for the whole answer. The results are the same.

Shapes: R rows, H query heads, G key-value heads, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_GROUPED = "saerl_grouped"


@contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Within it, a model that attends with sdpa does so without repeating keys and values."""
    before = model.config._attn_implementation
    if before != "sdpa":
        yield
        return
    model.set_attn_implementation(_GROUPED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def make_room(cache: Any, tokens: int) -> None:
    """Replace each plain layer of a cache by one with room for so many tokens more."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            cache.layers[number] = _RoomyLayer(layer.keys, layer.values, tokens)


class _RoomyLayer(DynamicLayer):
    def __init__(self, keys_RGTD: torch.Tensor, values_RGTD: torch.Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys_RGTD, values_RGTD)
        self._all_keys, self._all_values = _with_room(keys_RGTD, room), _with_room(values_RGTD, room)
        self._length = keys_RGTD.shape[-2]
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, self._length = self._length, self._length + key_states.shape[-2]
        self._all_keys[:, :, start : self._length] = key_states
        self._all_values[:, :, start : self._length] = value_states
        return self._show()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
        self._show()

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        shown = self._all_keys[:, :, : self._length], self._all_values[:, :, : self._length]
        self.keys, self.values = shown
        return shown


def _with_room(states_RGTD: torch.Tensor, room: int) -> torch.Tensor:
    rows, groups, length, width = states_RGTD.shape
    roomy = states_RGTD.new_empty(rows, groups, length + room, width)
    roomy[:, :, :length] = states_RGTD
    return roomy


def _grouped(
    module: torch.nn.Module, query_RHTD: torch.Tensor, key_RGTD: torch.Tensor, value_RGTD: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float | None = None, **settings: Any,
) -> tuple[torch.Tensor, None]:
    rows, heads, length, width = query_RHTD.shape
    groups = key_RGTD.shape[1]
    if length > 1 or heads == groups:
        return sdpa_attention_forward(
            module, query_RHTD, key_RGTD, value_RGTD, attention_mask, scaling=scaling, **settings
        )
    attended = torch.nn.functional.scaled_dot_product_attention(
        query_RHTD.reshape(rows, groups, heads // groups, width), key_RGTD, value_RGTD,
        attn_mask=attention_mask, scale=scaling,
    )
    return attended.reshape(rows, 1, heads, width), None


AttentionInterface.register(_GROUPED, _grouped)
AttentionMaskInterface.register(_GROUPED, sdpa_mask)
