"""What a reader's residual stream gives for each prompt, beside SAE features: the controls of `benchmarks.signal`.

Legend: B prompts in a batch, T tokens (padded), D residual width, S features, K features kept per token, N prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from benchmarks.rows import Chat
from saerl_core import backbone as backbones
from saerl_core.backbone import Backbone
from saerl_core.config import FeaturesConfig
from saerl_core.extract import batch_by_length, extract, pad, pooled_tokens
from saerl_core.models import render
from saerl_core.probes import inputs
from saerl_core.sae import Sae


@dataclass(frozen=True)
class Reading:
    """N prompts, seen in several ways. Every matrix is [N, columns]."""

    sae: sp.csr_array
    """square roots of mean SAE activations: what our probes see"""
    dense: sp.csr_array
    """mean residual stream, centred"""
    random: sp.csr_array
    """the same pooling after a random encoder of the SAE's width and L0 in the SAE's place"""
    words: sp.csr_array
    """TF-IDF of words and pairs of words"""
    active: np.ndarray
    """int [N], SAE features that fire"""
    mass: np.ndarray
    """float [N], sum of all activations of all tokens"""
    tokens: np.ndarray
    """int [N]"""


def read(backbone: Backbone, sae: Sae, prompts: Sequence[Chat], config: FeaturesConfig, k: int) -> Reading:
    """Read prompts in every way.

    Args:
        backbone: The truncated reader.
        sae: Its SAE.
        prompts: N chats.
        config: As for `extract`.
        k: L0 of the random encoder.
    """
    rows = extract(backbone, sae, prompts, config)
    texts = ["\n".join(message["content"] for message in chat) for chat in prompts]
    dense, random = _controls(backbone, prompts, config, sae.d_sae, k)
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True, token_pattern=r"\\?\w+|[^\w\s]")
    return Reading(
        sae=inputs(rows), dense=sp.csr_array(dense - dense.mean(axis=0)), random=random,
        words=sp.csr_array(words.fit_transform(texts)), active=rows.active(),
        mass=np.asarray(rows.matrix().sum(axis=1)).ravel() * rows.tokens, tokens=rows.tokens + rows.masked + rows.cut)


@torch.inference_mode()
def _controls(backbone: Backbone, prompts: Sequence[Chat], config: FeaturesConfig, d_sae: int,
              k: int) -> tuple[np.ndarray, sp.csr_array]:
    width = int(backbone.model.config.get_text_config(decoder=True).hidden_size)
    W_DS = torch.randn(width, d_sae, generator=torch.Generator().manual_seed(0)).to(backbone.device) / width**0.5
    dense_ND = np.zeros((len(prompts), width))
    rows: list[sp.csr_array] = []
    order: list[int] = []
    for batch, h_BTD, keep_BT in _batches(backbone, prompts, config):
        tokens_B1 = keep_BT.sum(1, keepdim=True)
        dense_ND[batch] = ((h_BTD * keep_BT[..., None]).sum(1) / tokens_B1).cpu().numpy()
        values_TK, features_TK = (h_BTD[keep_BT] @ W_DS).topk(k, dim=-1)
        prompt_T = keep_BT.nonzero()[:, :1].expand(-1, k)
        share_TK = values_TK.clamp(min=0) / tokens_B1[prompt_T[:, 0]]
        pooled = sp.csr_array((share_TK.flatten().cpu(), (prompt_T.flatten().cpu(), features_TK.flatten().cpu())),
                              shape=(len(batch), d_sae))
        pooled.data = np.sqrt(pooled.data)
        rows.append(pooled)
        order += batch
    return dense_ND, sp.csr_array(sp.vstack(rows))[np.argsort(order)]


def _batches(backbone: Backbone, prompts: Sequence[Chat],
             config: FeaturesConfig) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """(prompt numbers, h_BTD, keep_BT) of every batch."""
    ids = [render(backbone.tokenizer, chat, chat_template=config.chat_template)[: config.max_tokens]
           for chat in prompts]
    for batch in batch_by_length([len(row) for row in ids], backbones.token_budget(backbone, config.tokens_per_batch)):
        ids_BT, real_BT = pad([ids[i] for i in batch], backbone.device)
        h_BTD = backbones.residual_stream(backbone, ids_BT).float()
        yield batch, h_BTD, pooled_tokens(h_BTD, ids_BT, real_BT, backbone.bos, config.sink_norm_ratio)
