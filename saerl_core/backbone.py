"""A causal LM → its residual stream after one layer. Layers above it are dropped, so they cost neither time nor memory.

What all prompts begin with (a chat template's system message) is read once: attention is causal, so nothing that comes
later changes it, and its keys and values serve every prompt.

Legend: B prompts, T tokens (padded), P tokens of a shared beginning, D residual width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from saerl_core.device import choose_device
from saerl_core.errors import ModelError
from saerl_core.models import UNREADABLE, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CPU_TOKENS = 1024
_MOST_TOKENS = 16_384
"""More tokens at once make the products no faster, but the padding larger: in shards of 512 DeepScaleR prompts 2% at
1,024 and 11% at 16,384, 80% at 262,144."""
_ACTIVATIONS_PER_WIDTH = 64
"""What a token holds at most, in numbers per dimension of the residual stream: a layer's MLP, and what is read."""


@dataclass(frozen=True)
class Backbone:
    """The lower part of a causal LM, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    top_layer: torch.nn.Module
    device: torch.device
    dtype: torch.dtype

    @property
    def bos(self) -> int | None:
        """The token id that begins a text, if the tokenizer has one."""
        found = self.tokenizer.bos_token_id
        return found if isinstance(found, int) else None


@dataclass(frozen=True)
class Beginning:
    """What many prompts begin with, read once."""

    ids: tuple[int, ...]
    stream: torch.Tensor
    """h_PD, the residual stream after the top layer"""
    cache: Any
    """keys and values, transformers' `DynamicCache` of one row"""


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """Raised by the hook to leave the forward pass once the layer has spoken."""


def pick_device(asked: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to run on.

    Raises:
        ModelError: `cuda` is asked for and there is none.
    """
    return torch.device(choose_device(asked))


def pick_dtype(asked: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """The precision of the forward pass."""
    if asked == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[asked]


def token_budget(backbone: Backbone, asked: int | Literal["auto"]) -> int:
    """Tokens of one forward pass, padding included: enough to fill the device; on a GPU, no more than memory allows."""
    if asked != "auto":
        return asked
    if backbone.device.type != "cuda":
        return _CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(backbone.device)
    text_config: Any = backbone.model.config.get_text_config(decoder=True)
    per_token = _ACTIVATIONS_PER_WIDTH * text_config.hidden_size * backbone.dtype.itemsize
    return int(min(max(free // 2 // per_token, _CPU_TOKENS), _MOST_TOKENS))


def load_backbone(folder: Path, layer: int, device: torch.device, dtype: torch.dtype, *,
                  trust_remote_code: bool = False) -> Backbone:
    """Load a model for reading the residual stream after `layer` (0-based).

    Raises:
        ModelError: the model cannot be loaded, or its list of layers cannot be told.
    """
    from transformers import AutoModel

    try:
        model: Any = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa",
                                               use_safetensors=True, trust_remote_code=trust_remote_code)
    except UNREADABLE as error:
        raise ModelError(f"{folder}: transformers cannot load it: {' '.join(str(error).split())[:200]}") from error
    layers = find_layers(model)
    top_layer = layers[layer]
    del layers[layer + 1 :]
    model = model.to(device).eval().requires_grad_(False)
    return Backbone(model, load_tokenizer(folder, trust_remote_code=trust_remote_code), top_layer, device, dtype)


def find_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """A decoder's list of layers, whatever its family calls it: the module list of the configured length.

    Raises:
        ModelError: there is not exactly one.
    """
    text_config: Any = model.config.get_text_config(decoder=True)
    count = text_config.num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count]
    if len(found) != 1:
        raise ModelError(f"{type(model).__name__}: {len(found)} module lists of {count} layers; which is it?")
    return found[0]


def read_beginning(backbone: Backbone, ids: Sequence[int]) -> Beginning:
    """Read the tokens that many prompts begin with, for `residual_stream`."""
    from transformers import DynamicCache

    cache = DynamicCache(config=backbone.model.config)
    h_BTD = _read(backbone, torch.tensor([list(ids)], device=backbone.device), cache)
    return Beginning(tuple(ids), h_BTD[0], cache)


def residual_stream(backbone: Backbone, ids_BT: torch.Tensor, beginning: Beginning | None = None) -> torch.Tensor:
    """The residual stream after the backbone's top layer.

    Args:
        backbone: From `load_backbone`.
        ids_BT: Token ids, padded on the right. No mask is needed: attention is causal, so what a token sees lies
            to its left, and padding lies to its right.
        beginning: What every row begins with, if it was read before; only the rest is computed. Every row is longer.

    Returns:
        h_BTD in the backbone's precision, of all tokens. Rows at padding are meaningless.
    """
    if beginning is None:
        return _read(backbone, ids_BT, None)
    cache = copy.deepcopy(beginning.cache)  # a pass adds to it
    cache.batch_repeat_interleave(len(ids_BT))
    h_BTD = _read(backbone, ids_BT[:, len(beginning.ids) :], cache)
    return torch.cat([beginning.stream.expand(len(ids_BT), -1, -1), h_BTD], dim=1)


def _read(backbone: Backbone, ids_BT: torch.Tensor, cache: Any) -> torch.Tensor:
    caught: list[torch.Tensor] = []

    def catch(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    handle = backbone.top_layer.register_forward_hook(catch)
    try:
        backbone.model(input_ids=ids_BT, past_key_values=cache, use_cache=cache is not None)
    except _Reached:
        pass
    finally:
        handle.remove()
    return caught[0]
