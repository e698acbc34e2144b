"""An SAE's weights → an encoder on its device.

The weights come through sae-lens, which knows every version of the format. TopK, JumpReLU and ReLU SAEs are then
encoded here, all other architectures by sae-lens's own `encode`; a chunk of tokens at a time, and only what fires
leaves the chunk.

Legend: T tokens, D residual width (d_in), S features (d_sae), N features that fire, over all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saerl_core.errors import ModelError
from saerl_core.models import UNREADABLE
from saerl_core.top_k import Encode, Entries, top_k

Decode = Callable[[Entries, int], torch.Tensor]
"""(what fires, T) → the reconstruction of h_TD, without ever making the dense [T, S] matrix."""

CHUNK_ELEMENTS = 1 << 26
"""Most pre-activations in memory at a time: 256 MiB in float32."""


@dataclass(frozen=True)
class Sae:
    """An SAE on its device."""

    encode: Encode
    decode: Decode | None
    """None where what is decoded depends on more than the features: the input was normalised token by token."""
    d_sae: int


def load_sae(folder: Path, device: torch.device, dtype: torch.dtype) -> Sae:
    """Load an SAE for reading.

    Raises:
        ModelError: sae-lens cannot read it, or it does not encode each token by itself.
    """
    from sae_lens import SAE, GatedSAE, JumpReLUSAE, StandardSAE, TopKSAE

    try:
        sae = SAE.load_from_disk(str(folder), device=str(device))
    except UNREADABLE as error:
        raise ModelError(f"{folder}: sae-lens cannot load it: {' '.join(str(error).split())[:200]}") from error
    if sae.cfg.architecture() == "temporal":
        raise ModelError(f"{folder}: a temporal SAE encodes whole sequences; SAERL reads token by token")
    sae = sae.to(device=device, dtype=dtype).eval().requires_grad_(False)
    plain = sae.cfg.normalize_activations in ("none", "expected_average_only_in")  # the latter is folded, or absent
    if isinstance(sae, TopKSAE) and plain:
        norm_S = sae.W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else torch.ones_like(sae.b_enc)
        fire = top_k(*_encoder_matrix(sae, norm_S), sae.cfg.k)
        decode = _decode(sae.W_dec / norm_S[:, None], sae.b_dec)
    elif isinstance(sae, StandardSAE | JumpReLUSAE) and plain:
        threshold_S = sae.threshold.clamp(min=0) if isinstance(sae, JumpReLUSAE) else torch.zeros_like(sae.b_enc)
        fire = _above(*_encoder_matrix(sae, torch.ones_like(sae.b_enc)), threshold_S)
        decode = _decode(sae.W_dec, sae.b_dec)
    else:
        fire = dense(sae.encode)
        decode = _decode(sae.W_dec, sae.b_dec) if plain and isinstance(sae, GatedSAE) else None
    return Sae(in_chunks(fire, sae.cfg.d_sae), decode, sae.cfg.d_sae)


def _encoder_matrix(sae: Any, scale_S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(W_DS, bias_S) with the input's bias and the decoder's norms folded in."""
    bias_S = sae.b_enc - (sae.b_dec * sae.cfg.apply_b_dec_to_input) @ sae.W_enc
    return (sae.W_enc * scale_S).contiguous(), bias_S * scale_S


def _above(W_DS: torch.Tensor, bias_S: torch.Tensor, threshold_S: torch.Tensor) -> Encode:
    def encode(h_TD: torch.Tensor) -> Entries:
        pre_TS = torch.addmm(bias_S, h_TD.to(W_DS.dtype), W_DS)
        token_N, feature_N = (pre_TS > threshold_S).nonzero(as_tuple=True)
        return pre_TS[token_N, feature_N].float(), token_N, feature_N

    return encode


def dense(activations: Callable[[torch.Tensor], torch.Tensor]) -> Encode:
    """An encoder from a function that gives dense activations h_TD → [T, S]."""

    def encode(h_TD: torch.Tensor) -> Entries:
        acts_TS = activations(h_TD)
        token_N, feature_N = acts_TS.nonzero(as_tuple=True)
        return acts_TS[token_N, feature_N].float(), token_N, feature_N

    return encode


def in_chunks(encode: Encode, d_sae: int) -> Encode:
    """The same entries, with never more than `CHUNK_ELEMENTS` dense activations in memory."""
    chunk = max(1, CHUNK_ELEMENTS // d_sae)

    def chunked(h_TD: torch.Tensor) -> Entries:
        if len(h_TD) <= chunk:
            return encode(h_TD)
        parts = [encode(h_TD[start : start + chunk]) for start in range(0, len(h_TD), chunk)]
        values, tokens, features = zip(*parts, strict=True)
        shifted = [token_N + number * chunk for number, token_N in enumerate(tokens)]
        return torch.cat(values), torch.cat(shifted), torch.cat(features)

    return chunked


def _decode(W_SD: torch.Tensor, b_D: torch.Tensor) -> Decode:
    def decode(entries: Entries, tokens: int) -> torch.Tensor:
        values_N, token_N, feature_N = entries
        starts_T = torch.searchsorted(token_N, torch.arange(tokens, device=token_N.device))
        return b_D + torch.nn.functional.embedding_bag(feature_N, W_SD, starts_T, mode="sum",
                                                       per_sample_weights=values_N.to(W_SD.dtype))

    return decode
