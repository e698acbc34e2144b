"""What an SAE on disk, or a control in its place, says of itself: shape, layer and hash, without weights or torch.

The shape comes from `cfg.json` alone, so that a misfit shows in milliseconds.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saerl_core import sums
from saerl_core.config import FeaturesConfig
from saerl_core.controls import RANDOM, RESIDUAL
from saerl_core.errors import ArtifactError, ConfigError, ModelError
from saerl_core.hashing import hash_files, hash_value
from saerl_core.models import ModelSpec

SAE_FILES = ("cfg.json", "sae_weights.safetensors")
_RESIDUAL_HOOK = re.compile(r"^blocks\.(\d+)\.hook_resid_(pre|post)$")
_K = 64
"""Features that a random projection fires on a token, where the SAE neither fixes nor states how many it fires."""


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


def encoder_spec(sae: SaeSpec, config: FeaturesConfig) -> SaeSpec:
    """The shape of the encoder that `features.encoder` names, from the shape of the SAE."""
    match config.encoder:
        case "random":
            k = sae.k or min(round(sae.l0 or _K), sae.d_sae)
            return replace(sae, architecture=RANDOM, k=k, heldout_fvu=None, l0=None)
        case "residual":  # of a dimension's two parts one is zero
            return replace(sae, architecture=RESIDUAL, d_sae=2 * sae.d_in, k=sae.d_in, heldout_fvu=None, l0=None)
        case _:
            return sae


def encoder_hash(folder: Path, config: FeaturesConfig) -> str:
    """Content hash of the encoder: of the SAE in `folder`, or of all that decides what the control gives.

    Raises:
        ModelError: see `read_spec`.
    """
    if config.encoder == "sae":
        return sae_hash(folder)
    spec = encoder_spec(read_spec(folder), config)
    seed = config.encoder_seed if config.encoder == "random" else None
    return hash_value([spec.architecture, spec.d_in, spec.d_sae, spec.k, seed])
