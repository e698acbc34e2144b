"""An SAE on disk → a checked encoder.

The shape comes from `cfg.json` alone, so that a misfit shows in milliseconds. The weights come through sae-lens,
which knows every version of the format. TopK, JumpReLU and ReLU SAEs are then encoded here, all other architectures by
sae-lens's own `encode`; a chunk of tokens at a time, and only what fires leaves the chunk.

Legend: T tokens, D residual width (d_in), S features (d_sae), K active features per token, N features that fire, over
all tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saerl_core import sums
from saerl_core.errors import ArtifactError, ConfigError, ModelError
from saerl_core.hashing import hash_files
from saerl_core.models import UNREADABLE, ModelSpec

SAE_FILES = ("cfg.json", "sae_weights.safetensors")
_RESIDUAL_HOOK = re.compile(r"^blocks\.(\d+)\.hook_resid_(pre|post)$")

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(values_N, token_N, feature_N): the features that fire on some tokens, tokens ascending."""
Encode = Callable[[torch.Tensor], Entries]
"""h_TD → what fires."""
Decode = Callable[[Entries, int], torch.Tensor]
"""(what fires, T) → the reconstruction of h_TD, without ever making the dense [T, S] matrix."""

_CHUNK_ELEMENTS = 1 << 26
"""Most pre-activations in memory at a time: 256 MiB in float32."""


@dataclass(frozen=True)
class SaeSpec:
    """What `cfg.json` says about an SAE."""

    architecture: str
    d_in: int
    d_sae: int
    k: int | None
    """Features that fire on a token, where the architecture fixes that."""
    layer: int | None
    """The SAE reads the residual stream after this layer; None where the file does not say."""
    heldout_fvu: float | None
    """Fraction of variance that it leaves unexplained of text like its training text, in the median document; None
    where the file does not say."""
    l0: float | None = None
    """Features that fire on a token, on average over text like its training text; None where the file does not say."""


def read_spec(folder: Path) -> SaeSpec:
    """Shape of the SAE in `folder`, without loading a weight.

    Raises:
        ModelError: a file is missing or broken, or the SAE does not read the residual stream.
    """
    path = folder / "cfg.json"
    for name in SAE_FILES:
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: no SAE in sae-lens's format there (no {name}); to train one there, run "
                             "`saerl train-sae` with this config")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not an SAE configuration: {type(error).__name__}: {error}") from error
    return parse_spec(config, str(path))


def parse_spec(config: dict[str, Any], where: str) -> SaeSpec:
    """Shape of an SAE, from what sae-lens calls its configuration.

    Raises:
        ModelError: a number is missing, or the SAE does not read the residual stream.
    """
    try:
        metadata = config.get("metadata") or {}
        hook = metadata.get("hook_name") or config.get("hook_name")
        spec = SaeSpec(
            architecture=str(config.get("architecture", "standard")),
            d_in=int(config["d_in"]),
            d_sae=int(config["d_sae"]),
            k=int(config["k"]) if config.get("k") else None,
            layer=_layer(hook),
            heldout_fvu=metadata.get("heldout_fvu"),
            l0=float(metadata["l0"]) if metadata.get("l0") else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{where}: not an SAE configuration: {type(error).__name__}: {error}") from error
    if spec.k is not None and spec.k > spec.d_sae:
        raise ModelError(f"{where}: k = {spec.k} features at once, of d_sae = {spec.d_sae}")
    if hook and spec.layer is None:
        raise ModelError(f"{where}: the SAE was trained on {hook!r}; SAERL reads the residual stream "
                         "(blocks.N.hook_resid_post)")
    return spec


def _layer(hook: str | None) -> int | None:
    match = _RESIDUAL_HOOK.match(hook or "")
    if match is None:
        return None
    layer = int(match.group(1)) - (match.group(2) == "pre")  # what enters block N is what leaves block N - 1
    return layer if layer >= 0 else None


def choose_layer(sae: SaeSpec, model: ModelSpec, asked: int | None) -> int:
    """The layer to read, after checking that model, SAE and config agree.

    Raises:
        ModelError: `d_in` is not the model's width.
        ConfigError: no layer is known, it does not exist, or it is not the SAE's.
    """
    if sae.d_in != model.d_model:
        raise ModelError(f"features.sae has d_in {sae.d_in}, features.model has a residual stream of {model.d_model}: "
                         "the SAE was trained on another model")
    layer = sae.layer if asked is None else asked
    if layer is None:
        raise ConfigError("features.layer is not set and the SAE's cfg.json does not name its hook: set features.layer")
    if layer >= model.layers:
        raise ConfigError(f"features.layer = {layer}: features.model has {model.layers} layers (0 to "
                          f"{model.layers - 1})")
    if sae.layer is not None and layer != sae.layer:
        raise ConfigError(f"features.layer = {layer}: features.sae was trained on layer {sae.layer}; "
                          "leave features.layer out to use that")
    return layer


def tidy(weights: Path, config: Path) -> None:
    """Make what sae-lens has written readable to all and, its keys sorted, the same from process to process."""
    config.write_text(json.dumps(json.loads(config.read_text()), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in (weights, config):
        path.chmod(0o644)


def sae_hash(folder: Path) -> str:
    """Content hash of an SAE: configuration and weights.

    Raises:
        ModelError: `saerl train-sae` wrote it, and it is not what was written.
    """
    if (folder / sums.NAME).exists():
        try:
            sums.check(folder, SAE_FILES)
        except ArtifactError as error:
            raise ModelError(f"{error}; `saerl train-sae` writes it again; if the change is yours, delete "
                             f"{folder / sums.NAME}") from error
    return hash_files(folder, (folder / name for name in SAE_FILES))


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


def top_k(W_DS: torch.Tensor, bias_S: torch.Tensor, k: int) -> Encode:
    """A TopK encoder: of a token's k largest pre-activations, those above 0."""

    def encode(h_TD: torch.Tensor) -> Entries:
        values_TK, features_TK = torch.addmm(bias_S, h_TD.to(W_DS.dtype), W_DS).topk(k, dim=-1, sorted=False)
        fires_TK = values_TK > 0
        return values_TK[fires_TK].float(), fires_TK.nonzero()[:, 0], features_TK[fires_TK]

    return encode


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
    """The same entries, with never more than `_CHUNK_ELEMENTS` dense activations in memory."""
    chunk = max(1, _CHUNK_ELEMENTS // d_sae)

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
