"""Sections `features` and `sae_training`: what is read in the prompts, and with which SAE."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from saerl_core.config.section import INCIDENTAL, Count, Place, Section, Seed, Share


class FeaturesConfig(Section):
    """Which model is read, through which SAE, and how the tokens of a prompt become one row."""

    model: Place
    """The reader: folder or hub id of a causal LM. It need not be the policy."""
    sae: Place
    """Folder of an SAE in sae-lens's format (`cfg.json`, `sae_weights.safetensors`), or `sae-lens:RELEASE/SAE_ID` from
    sae-lens's registry."""
    encoder: Literal["sae", "random", "residual"] = "sae"
    """What tells features in the residual stream. `sae`: the SAE. The others are controls, which show what the SAE is
    worth, and take no more than its shape and layer from it. `random`: as many random directions, as many of which fire
    on a token (64 where the SAE does not say how many). `residual`: the residual stream itself, the positive and the
    negative part of each dimension; needs `clusters.weights: deviation`."""
    encoder_seed: Seed = 0
    """Seed of the random directions."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Read the residual stream after this layer (0-based). Default: the layer the SAE says it was trained on."""
    max_tokens: Count = 1024
    """A longer prompt is read up to here (and counted in the health figures)."""
    chat_template: bool = True
    """Render prompts with the reader's chat template, if it has one. False: plain text."""
    sink_norm_ratio: Annotated[float, Field(gt=1)] = 10.0
    """Mask tokens whose residual norm exceeds this multiple of the prompt's median (attention sinks)."""
    tokens_per_batch: Annotated[Count | Literal["auto"], INCIDENTAL] = "auto"
    """Token budget of one forward pass, padding included; halved where the device runs out of memory. `auto`: 1,024 on
    a CPU, on a GPU 16,384 or what half of its free memory holds. More is hardly faster, and pads more."""
    shard_rows: Annotated[Count, INCIDENTAL] = 512
    """Prompts per shard: what a crash can lose, and one mapped task in the UI."""
    device: Annotated[Literal["auto", "cpu", "cuda"], INCIDENTAL] = "auto"
    """Where to run. `auto`: the GPU, if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass. `auto`: bfloat16 on a GPU, float32 on a CPU."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you ask for it here."""


class CorpusConfig(Section):
    """Text on which an SAE is trained."""

    path: Place
    """A file or folder as for `data.path`; relative to the config file."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Columns whose texts, joined by blank lines, make one document. One column may hold lists of chat messages."""
    chat: bool = False
    """Read each text as a user's message in the chat template, as prompts are read. False: plain text."""


class SaeTrainingConfig(Section):
    """`saerl train-sae`: an SAE for the reader, trained on its own residual stream. What is read and how comes from
    `features`: the model, the template, the token limit, the mask of sinks."""

    architecture: Literal["topk", "batchtopk", "jumprelu"] = "topk"
    """`topk`: k features on every token. `batchtopk`: k on average over a batch. `jumprelu`: learned thresholds, drawn
    towards k on average."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """The residual stream after this layer (0-based). Default: `features.layer`, else the middle one."""
    expansion: Count = 16
    """Features per dimension of the residual stream."""
    d_sae: Count | None = None
    """Number of features. Default: `expansion` times the width of the residual stream."""
    k: Count = 32
    """Features that fire on a token."""
    tokens: Count = 20_000_000
    """Tokens to train on; a smaller corpus is read several times, a larger one in part."""
    batch_tokens: Count = 4096
    """Tokens per step."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Adam's learning rate."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    decay: Share = 0.2
    """Share of the steps, at the end, over which it falls to zero."""
    buffer_tokens: Count = 262_144
    """Activations that are held and mixed at a time. Each takes four bytes a dimension in float32."""
    corpus: CorpusConfig | None = None
    """What to read. Default: the usable prompts of `data`."""
    heldout_tokens: Count = 100_000
    """Tokens of documents that are left out of training, at most a tenth of the corpus, to measure on."""
    save_every: Annotated[Count, INCIDENTAL] = 500
    """Steps between checkpoints."""
    out: Annotated[str | None, INCIDENTAL] = None
    """Folder for the SAE; relative to the config file. Default: what `features.sae` names."""
    seed: Seed = 0
    """Seed of the weights, of the held-out documents, and of the order."""

    @model_validator(mode="after")
    def _amounts_fit(self) -> Self:
        if self.tokens < self.batch_tokens:
            raise ValueError(f"sae_training.tokens ({self.tokens}) is less than one sae_training.batch_tokens "
                             f"({self.batch_tokens})")
        if self.buffer_tokens < 2 * self.batch_tokens:
            raise ValueError(f"sae_training.buffer_tokens ({self.buffer_tokens}) must hold at least two "
                             f"sae_training.batch_tokens ({self.batch_tokens}), or nothing is mixed")
        if self.warmup + self.decay > 1:
            raise ValueError(f"sae_training.warmup ({self.warmup}) and sae_training.decay ({self.decay}) exceed the "
                             "whole training")
        return self
