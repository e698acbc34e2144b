"""The toy's base model: a tiny Qwen2, trained from nothing on worked solutions that are often misread.

It learns arithmetic and format almost fully, and each phrase's meaning with the phrase's own probability
(see `world`), which is what a base model looks like to reinforcement learning: right now and then, and able to
become right. Muon for the matrices makes 1,400 small steps enough.

Tensor names: B = sequences of a batch, T = tokens, V = vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils import logging

from saerl_core.toy.tokenizer import END, END_ID, PAD_ID, render_prompt

BATCH_SIZE = 64
_MUON_RATE, _ADAMW_RATE = 0.02, 3e-3
_WARMUP_STEPS = 50
_CONSTANT_SHARE = 0.3
_PROMPT_WEIGHT = 0.1
_LOSS_STEPS = 50

Example = tuple[str, str]
"""A problem's text and a worked solution."""


@dataclass(frozen=True)
class TrainedModel:
    """The model, and its mean loss (nats a token of the solution) over the last 50 steps."""

    model: Qwen2ForCausalLM
    loss: float


def new_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A Qwen2 of 4 layers x 128 (0.85M parameters) with random weights from torch's global generator."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=END_ID, pad_token_id=PAD_ID, do_sample=True, temperature=1.0
    )
    return model


def train_model(
    tokenizer: Qwen2Tokenizer,
    examples: Sequence[Example],
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedModel:
    """Train a new model, one step for each 64 examples. Leaves torch's global generator as it was.

    Args:
        tokenizer: Whose chat template the prompts get.
        examples: Problems with their worked solutions, at least one; each is seen once.
        seed: Of the weights and of the order of batches.
        progress: Called with (steps done, steps) after every step.
    """
    sequences = [
        (
            tokenizer.encode(render_prompt(tokenizer, problem), add_special_tokens=False),
            tokenizer.encode(solution + END, add_special_tokens=False),
        )
        for problem, solution in examples
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(tokenizer).train()
    batches = _batches(sequences, seed)
    steps = len(batches)
    optimizers = _optimizers(model)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps)) for optimizer in optimizers
    ]
    recent: list[float] = []
    for step, batch in enumerate(batches, start=1):
        tokens_BT, weights_BT = _pad(batch)
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        losses_BT = functional.cross_entropy(logits_BTV[:, :-1].transpose(1, 2), tokens_BT[:, 1:], reduction="none")
        weights_BT = weights_BT[:, 1:]
        loss = (losses_BT * weights_BT).sum() / weights_BT.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        recent = [*recent[1 - _LOSS_STEPS:], float(losses_BT.detach()[weights_BT == 1].mean())]
        if progress is not None:
            progress(step, steps)
    return TrainedModel(model.eval(), sum(recent) / len(recent))


def save_model(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Write model (float32 safetensors) and tokenizer so that transformers' Auto classes read them."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    tokenizer.backend_tokenizer.no_padding()  # what its last use left switched on would be written too
    tokenizer.save_pretrained(folder)


def _optimizers(model: Qwen2ForCausalLM) -> list[torch.optim.Optimizer]:
    hidden = [parameter for name, parameter in model.named_parameters() if _is_hidden_matrix(name, parameter)]
    rest = [parameter for name, parameter in model.named_parameters() if not _is_hidden_matrix(name, parameter)]
    return [
        torch.optim.Muon(hidden, lr=_MUON_RATE, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=_ADAMW_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and "embed" not in name  # Muon is for matrices between hidden states


def _rate(step: int, steps: int) -> float:
    """Share of the full learning rate: linear warm-up, constant, then a cosine down to 2%."""
    warmup = min(1.0, (step + 1) / _WARMUP_STEPS)
    done = step / steps
    if done < _CONSTANT_SHARE:
        return warmup
    decay = 0.5 * (1 + math.cos(math.pi * (done - _CONSTANT_SHARE) / (1 - _CONSTANT_SHARE)))
    return warmup * max(0.02, decay)


_Sequence = tuple[list[int], list[int]]  # token ids of prompt and solution


def _batches(sequences: Sequence[_Sequence], seed: int) -> list[list[_Sequence]]:
    """Batches of sequences of like length (little padding), in random order."""
    order = sorted(range(len(sequences)), key=lambda row: sum(map(len, sequences[row])))
    batches = [
        [sequences[row] for row in order[first:first + BATCH_SIZE]] for first in range(0, len(order), BATCH_SIZE)
    ]
    random.Random(seed).shuffle(batches)
    return batches


def _pad(batch: list[_Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens padded on the right, and the weight of each in the loss: prompt .1, solution 1, padding 0."""
    length = max(len(prompt) + len(solution) for prompt, solution in batch)
    tokens_BT = torch.full((len(batch), length), PAD_ID)
    weights_BT = torch.zeros(len(batch), length)
    for row, (prompt, solution) in enumerate(batch):
        end = len(prompt) + len(solution)
        tokens_BT[row, :end] = torch.tensor(prompt + solution)
        weights_BT[row, :len(prompt)] = _PROMPT_WEIGHT
        weights_BT[row, len(prompt):end] = 1
    return tokens_BT, weights_BT
