"""Documents → shuffled batches of the residual stream, without end and within bounded memory.

The documents are read epoch after epoch, each in an order of its own. They fill a buffer; its tokens are shuffled and
leave in batches; what is less than a batch is dropped, and the next documents fill the buffer anew. So a buffer is
made of nothing but the seed and the place at which it starts: going on after a crash needs that place, and no
activations or generator states on disk.

Legend: B documents in a forward pass, T tokens (padded), N tokens in the buffer or in a batch, D residual width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from saerl_core import backbone as backbones
from saerl_core.backbone import Backbone
from saerl_core.errors import DataError
from saerl_core.extract import batch_by_length, pad, pooled_tokens


@dataclass(frozen=True)
class Place:
    """Where in the stream of batches we are."""

    document: int = 0
    """Documents read before this buffer was begun, over all epochs."""
    batch: int = 0
    """Batches of this buffer that are used up."""


@torch.inference_mode()
def read_documents(backbone: Backbone, documents: Sequence[Sequence[int]], *, tokens_per_batch: int,
                   sink_norm_ratio: float) -> torch.Tensor:
    """The residual stream at every token that extraction would pool: h_ND, document after document.

    Args:
        backbone: The truncated reader.
        documents: Token ids.
        tokens_per_batch: Token budget of a forward pass; changes nothing but the speed.
        sink_norm_ratio: See `extract.pooled_tokens`.
    """
    parts: list[torch.Tensor] = [torch.empty(0)] * len(documents)
    for batch in batch_by_length([len(ids) for ids in documents], tokens_per_batch):
        ids_BT, real_BT = pad([documents[i] for i in batch], backbone.device)
        h_BTD = backbones.residual_stream(backbone, ids_BT)
        keep_BT = pooled_tokens(h_BTD, ids_BT, real_BT, backbone.bos, sink_norm_ratio)
        for row, i in enumerate(batch):
            parts[i] = h_BTD[row, keep_BT[row]]
    return torch.cat(parts)


def stream(backbone: Backbone, documents: Sequence[Sequence[int]], *, batch_tokens: int, buffer_tokens: int, seed: int,
           tokens_per_batch: int, sink_norm_ratio: float,
           place: Place = Place()) -> Iterator[tuple[torch.Tensor, Place]]:
    """Endless batches h_ND of `batch_tokens`, each with the place behind it.

    Raises:
        DataError: the mask leaves too little of a buffer to make a batch.
    """
    document, used = place.document, place.batch
    while True:
        chosen, after = _fill(documents, document, buffer_tokens, seed)
        h_ND = read_documents(backbone, chosen, tokens_per_batch=tokens_per_batch, sink_norm_ratio=sink_norm_ratio)
        batches = len(h_ND) // batch_tokens
        if not batches:
            raise DataError(f"of {buffer_tokens} tokens {len(h_ND)} are left after BOS and attention sinks are masked, "
                            f"less than sae_training.batch_tokens = {batch_tokens}; see features.sink_norm_ratio")
        order_N = torch.from_numpy(np.random.default_rng((seed, 1, document)).permutation(len(h_ND))).to(h_ND.device)
        for batch in range(used, batches):
            following = Place(after, 0) if batch + 1 == batches else Place(document, batch + 1)
            yield h_ND[order_N[batch * batch_tokens : (batch + 1) * batch_tokens]].float(), following
        document, used = after, 0


def _fill(documents: Sequence[Sequence[int]], start: int, tokens: int, seed: int) -> tuple[list[Sequence[int]], int]:
    """Documents from place `start` on until they hold `tokens`, and the place behind them."""
    chosen, count = [], 0
    for epoch in itertools.count(start // len(documents)):
        order = np.random.default_rng((seed, 0, epoch)).permutation(len(documents))
        for position in range((start + len(chosen)) % len(documents), len(documents)):
            chosen.append(documents[order[position]])
            count += len(chosen[-1])
            if count >= tokens:
                return chosen, start + len(chosen)
    raise AssertionError("unreachable")
