"""An SAE on disk → a checked encoder.

The shape comes from `cfg.json` alone, so that a misfit shows in milliseconds. The weights come through sae-lens,
which knows every version of the format. TopK SAEs are then encoded without ever making the dense [T, S] matrix of
activations; all other architectures go through sae-lens's own `encode`.

Legend: T tokens, D residual width (d_in), S features (d_sae), K active features per token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from saerl_core.errors import ConfigError, ModelError
from saerl_core.hashing import hash_files
from saerl_core.models import UNREADABLE, ModelSpec

_FILES = ("cfg.json", "sae_weights.safetensors")
_RESIDUAL_HOOK = re.compile(r"^blocks\.(\d+)\.hook_resid_(pre|post)$")

Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""h_TD → (values, token, feature), each of length nnz: the features that fire, in no particular order."""


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


def read_spec(folder: Path) -> SaeSpec:
    """Shape of the SAE in `folder`, without loading a weight.

    Raises:
        ModelError: a file is missing or broken, or the SAE does not read the residual stream.
    """
    path = folder / "cfg.json"
    for name in _FILES:
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: no SAE in sae-lens's format there (no {name})")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        metadata = config.get("metadata") or {}
        hook = metadata.get("hook_name") or config.get("hook_name")
        spec = SaeSpec(
            architecture=str(config.get("architecture", "standard")),
            d_in=int(config["d_in"]),
            d_sae=int(config["d_sae"]),
            k=int(config["k"]) if config.get("k") else None,
            layer=_layer(hook),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not an SAE configuration: {type(error).__name__}: {error}") from error
    if hook and spec.layer is None:
        raise ModelError(f"{path}: the SAE was trained on {hook!r}; SAERL reads the residual stream "
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


def sae_hash(folder: Path) -> str:
    """Content hash of an SAE: configuration and weights."""
    return hash_files(folder, (folder / name for name in _FILES))


def load_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Encode:
    """Load an SAE and give its encoder.

    Raises:
        ModelError: sae-lens cannot read it.
    """
    from sae_lens import SAE, TopKSAE

    try:
        sae = SAE.load_from_disk(str(folder), device=str(device))
    except UNREADABLE as error:
        raise ModelError(f"{folder}: sae-lens cannot load it: {' '.join(str(error).split())[:200]}") from error
    sae = sae.to(device=device, dtype=dtype).eval()
    if isinstance(sae, TopKSAE) and sae.cfg.normalize_activations == "none":
        return _topk_encode(sae.W_enc, sae.b_enc, sae.b_dec * sae.cfg.apply_b_dec_to_input,
                            sae.W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else None, sae.cfg.k)
    return _dense_encode(sae.encode)


def _topk_encode(W_enc_DS: torch.Tensor, b_enc_S: torch.Tensor, b_in_D: torch.Tensor,
                 scale_S: torch.Tensor | None, k: int) -> Encode:
    bias_S = b_enc_S - b_in_D @ W_enc_DS
    W_DS = W_enc_DS
    if scale_S is not None:
        W_DS, bias_S = W_enc_DS * scale_S, bias_S * scale_S
    W_DS, bias_S = W_DS.detach().contiguous(), bias_S.detach()

    def encode(h_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pre_TS = torch.addmm(bias_S, h_TD.to(W_DS.dtype), W_DS)
        values_TK, features_TK = pre_TS.topk(k, dim=-1, sorted=False)
        fires_TK = values_TK > 0
        token_N = fires_TK.nonzero()[:, 0]
        return values_TK[fires_TK].float(), token_N, features_TK[fires_TK]

    return encode


def _dense_encode(dense: Callable[[torch.Tensor], torch.Tensor]) -> Encode:
    def encode(h_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        acts_TS = dense(h_TD)
        token_N, feature_N = acts_TS.nonzero(as_tuple=True)
        return acts_TS[token_N, feature_N].float(), token_N, feature_N

    return encode
