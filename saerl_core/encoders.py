"""What turns a residual vector into non-negative features: the SAE, or a control in its place that has learned nothing.

A claim about SAE features is worth what it is worth beside these:

- `random`: a TopK encoder of the SAE's own shape whose directions were drawn by lot. What it does as well as the SAE
  owes nothing to the SAE's dictionary.
- `residual`: the residual stream itself, each dimension split into its positive and its negative part. What it does as
  well owes nothing to sparse features.

A control is identified by what it computes, not by the SAE that it stands for: its rows have a store of their own, and
clusters made from them fit no others. Neither reconstructs anything, so no share of variance is unexplained: it is NaN.

Legend: D residual width (d_in), S features (d_sae), T tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch

from saerl_core.config import FeaturesConfig
from saerl_core.sae import Sae, dense, in_chunks, load_sae
from saerl_core.sae_spec import encoder_spec, read_spec
from saerl_core.top_k import top_k


def load_encoder(folder: Path, config: FeaturesConfig, device: torch.device, dtype: torch.dtype) -> Sae:
    """The encoder, on its device.

    Raises:
        ModelError: see `sae_spec.read_spec` and `sae.load_sae`.
    """
    if config.encoder == "sae":
        return load_sae(folder, device, dtype)
    spec = encoder_spec(read_spec(folder), config)
    if config.encoder == "residual":
        return Sae(in_chunks(dense(_parts), spec.d_sae), None, spec.d_sae)
    assert spec.k is not None
    W_DS = random_directions(spec.d_in, spec.d_sae, config.encoder_seed).to(device, dtype)
    return Sae(in_chunks(top_k(W_DS, W_DS.new_zeros(spec.d_sae), spec.k), spec.d_sae), None, spec.d_sae)


def random_directions(d_in: int, d_sae: int, seed: int) -> torch.Tensor:
    """W_DS float32 on the CPU: Gaussian, every feature's direction of length 1. The same on every device."""
    W_SD = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(W_SD, dim=1).T.contiguous()


def _parts(h_TD: torch.Tensor) -> torch.Tensor:
    """[T, 2 D]: the positive parts, then the negative ones."""
    return torch.cat([h_TD.relu(), (-h_TD).relu()], dim=-1)
