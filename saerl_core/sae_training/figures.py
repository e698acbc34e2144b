"""How well an SAE reads held-out text: what it explains, how sparse it is, and what the model still can do through it.

Legend: B documents in a forward pass, T tokens (padded), N tokens that count, D residual width, S features, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saerl_core.backbone import Backbone, find_layers, token_budget
from saerl_core.config import FeaturesConfig
from saerl_core.errors import ModelError
from saerl_core.extract import batch_by_length, extract_tokens, pad, pooled_tokens
from saerl_core.models import UNREADABLE
from saerl_core.sae import CHUNK_ELEMENTS, load_sae
from saerl_core.sae_training.activations import read_documents

_DOCUMENTS_AT_A_TIME = 64
_LOGIT_TOKENS = 2048
"""Tokens whose logits over the whole vocabulary are in memory at once."""


@dataclass(frozen=True)
class Reconstruction:
    """How well an SAE reads given tokens."""

    explained_variance: float
    """1 − squared error / squared distance to the mean, over all tokens and dimensions."""
    l0: float
    """Mean number of features that fire on a token."""
    dead_share: float
    """Share of the features that fire on none of the tokens."""
    tokens: int


@dataclass(frozen=True)
class CrossEntropy:
    """Nats a token, predicting every next token of the held-out documents."""

    clean: float
    spliced: float
    """with the SAE's reconstruction in place of the residual stream"""
    ablated: float
    """with zeros in its place"""
    recovered: float
    """(ablated − spliced) / (ablated − clean): 1 where nothing is lost"""
    tokens: int
    """Tokens predicted."""


def measure(reader: Backbone, load_model: Callable[[], Any], layer: int, folder: Path,
            documents: Sequence[list[int]], config: FeaturesConfig,
            progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """All figures of a saved SAE on held-out documents, as JSON values.

    `document_fvu` is the median document's fraction of variance unexplained, measured as extraction measures prompts.

    Args:
        reader: The truncated reader.
        load_model: Gives the whole model, with its head.
        layer: The SAE reads the residual stream after it.
        folder: The SAE.
        documents: Token ids.
        config: Token budget and sink mask.
        progress: Called with (documents done, documents).
    """
    from sae_lens import SAE

    fvu = extract_tokens(reader, load_sae(folder, reader.device, reader.dtype), documents, config).fvu
    sae = SAE.load_from_disk(str(folder), device=str(reader.device))
    reading = {"tokens_per_batch": token_budget(reader, config.tokens_per_batch),
               "sink_norm_ratio": config.sink_norm_ratio}
    parts = (read_documents(reader, documents[start : start + _DOCUMENTS_AT_A_TIME], **reading)
             for start in range(0, len(documents), _DOCUMENTS_AT_A_TIME))
    found = asdict(measure_reconstruction(sae, parts))
    lost = asdict(measure_cross_entropy(load_model(), layer, sae, documents, bos=reader.bos,
                                        progress=progress, **reading))
    measured = fvu[np.isfinite(fvu)]
    return {"documents": len(documents), **_rounded(found), "cross_entropy": _rounded(lost),
            "document_fvu": round(float(np.median(measured)), 6) if len(measured) else None}


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) for name, value in figures.items()}


@torch.inference_mode()
def measure_reconstruction(sae: Any, parts: Iterable[torch.Tensor]) -> Reconstruction:
    """Figures of an SAE over the activations h_ND of several parts, one in memory at a time.

    Args:
        sae: sae-lens's.
        parts: Activations h_ND; at least one token in all.
    """
    tokens, fired, error, squares = 0, 0.0, 0.0, 0.0
    sum_D, alive_S = torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    tokens_at_once = max(1, CHUNK_ELEMENTS // sae.cfg.d_sae)
    for h_ND in (chunk_ND for part_ND in parts for chunk_ND in part_ND.split(tokens_at_once)):
        h_ND = h_ND.float()
        acts_NS = sae.encode(h_ND)
        fires_NS = acts_NS > 0
        error += float((sae.decode(acts_NS) - h_ND).double().square().sum())
        tokens += len(h_ND)
        squares += float(h_ND.double().square().sum())
        sum_D = sum_D.to(h_ND.device) + h_ND.double().sum(0)
        fired += float(fires_NS.sum())
        alive_S = alive_S.to(h_ND.device) | fires_NS.any(0)
    variance = squares - float(sum_D.square().sum()) / tokens
    return Reconstruction(1 - error / variance, fired / tokens, 1 - float(alive_S.float().mean()), tokens)


@torch.inference_mode()
def measure_cross_entropy(model: Any, layer: int, sae: Any, documents: Sequence[Sequence[int]], *,
                          tokens_per_batch: int, sink_norm_ratio: float, bos: int | None,
                          progress: Callable[[int, int], None] | None = None) -> CrossEntropy:
    """What a model loses when it sees its residual stream through an SAE.

    BOS and attention sinks stay as they are in all three cases: the SAE is never shown them either.

    Args:
        model: A causal LM, whole.
        layer: The SAE reads the residual stream after it.
        sae: sae-lens's.
        documents: Token ids.
        tokens_per_batch: Token budget of a forward pass; never more than fit with their logits.
        sink_norm_ratio: See `extract.pooled_tokens`.
        bos: The token id of BOS, if there is one.
        progress: Called with (documents done, documents).
    """
    block = find_layers(model)[layer]
    sums, predicted, done = dict.fromkeys(("clean", "spliced", "ablated"), 0.0), 0, 0
    for batch in batch_by_length([len(ids) for ids in documents], min(tokens_per_batch, _LOGIT_TOKENS)):
        ids_BT, real_BT = pad([documents[i] for i in batch], model.device)
        known_BT = real_BT[:, 1:]
        for case in sums:
            def replace(_module: Any, _inputs: Any, output: Any, case: str = case, ids_BT: torch.Tensor = ids_BT,
                        real_BT: torch.Tensor = real_BT) -> Any:
                h_BTD = output[0] if isinstance(output, tuple) else output
                keep_BT = pooled_tokens(h_BTD, ids_BT, real_BT, bos, sink_norm_ratio)
                h_ND = h_BTD[keep_BT].float()
                changed_BTD = h_BTD.clone()
                changed_BTD[keep_BT] = (torch.zeros_like(h_ND) if case == "ablated" else
                                        sae.decode(sae.encode(h_ND))).to(h_BTD.dtype)
                return (changed_BTD, *output[1:]) if isinstance(output, tuple) else changed_BTD

            handle = None if case == "clean" else block.register_forward_hook(replace)
            try:
                logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
            finally:
                if handle is not None:
                    handle.remove()
            sums[case] += float(torch.nn.functional.cross_entropy(
                logits_BTV[:, :-1][known_BT].float(), ids_BT[:, 1:][known_BT], reduction="sum"))
        predicted += int(known_BT.sum())
        done += len(batch)
        if progress is not None:
            progress(done, len(documents))
    clean, spliced, ablated = (total / max(predicted, 1) for total in sums.values())
    return CrossEntropy(clean, spliced, ablated, (ablated - spliced) / (ablated - clean), predicted)


def load_causal_lm(folder: Path, device: torch.device, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """The whole model, with its head.

    Raises:
        ModelError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa",
                                                     use_safetensors=True, trust_remote_code=trust_remote_code)
    except UNREADABLE as error:
        raise ModelError(f"{folder}: transformers cannot load it: {' '.join(str(error).split())[:200]}") from error
    return model.to(device).eval().requires_grad_(False)
