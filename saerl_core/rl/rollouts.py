"""Answers of a policy to many prompts, and their scores: pass-rate labels and evaluation use this.

Prompts go through the model in order of length, in batches of a token budget; what comes back is in the caller's
order, and is the same for a seed whatever else ran in the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from saerl_core.errors import ModelError
from saerl_core.models import UNREADABLE, render_all
from saerl_core.rl.verl_side.saerl_sampling import Answer, SamplingRule, answer_seed, sample_answers, stop_ids_of

Message = dict[str, str]
Progress = Callable[[int, int], None]
"""Called with prompts done and prompts in all."""

_TOKENS_PER_BATCH = {"cpu": 1 << 16, "cuda": 1 << 19}


@dataclass(frozen=True)
class Policy:
    """A causal LM that answers chat prompts."""

    model: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    pad_id: int
    source: str


def default_device() -> Literal["cpu", "cuda"]:
    """The GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_policy(
    path: Path | str,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    trust_remote_code: bool = False,
) -> Policy:
    """Read a policy from a folder or from the hub, in evaluation mode.

    Args:
        device: `auto` is the GPU, if there is one.
        dtype: `auto` is bfloat16 on a GPU, float32 on a CPU.

    Raises:
        ModelError: it cannot be read, or its tokenizer has no chat template.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if device == "auto":
        device = default_device()
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    if isinstance(path, Path) and not path.is_dir():
        raise ModelError(f"{path}: no such model folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=trust_remote_code
        )
    except UNREADABLE as error:
        raise ModelError(f"{path}: cannot be loaded as a causal LM: {_one_line(error)}") from error
    if tokenizer.chat_template is None:
        raise ModelError(f"{path}: its tokenizer has no chat template, so verl cannot prompt it; "
                         "add a `chat_template.jinja` to the folder")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    model = model.to(device).eval().requires_grad_(False)
    return Policy(model, tokenizer, stop_ids_of(model, tokenizer), pad_id, str(path))


def encode_prompts(policy: Policy, messages: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Token ids of each chat, up to where the assistant begins to speak.

    Raises:
        ModelError: the chat template refuses a chat.
    """
    return render_all(policy.tokenizer, [list(chat) for chat in messages], chat_template=True)


def sample_texts(
    policy: Policy,
    messages: Sequence[Sequence[Message]],
    *,
    samples: int,
    temperature: float,
    max_response_tokens: int,
    seed: int,
    top_p: float = 1.0,
    progress: Progress | None = None,
    tokens_per_batch: int | None = None,
) -> list[list[str]]:
    """`samples` answers per prompt as text, in the order of `messages`. See `sample_scores`."""
    if temperature <= 0 and samples != 1:
        raise ValueError(f"temperature {temperature} is greedy: {samples} samples would all be the same")
    prompts = encode_prompts(policy, messages)
    rule = SamplingRule(temperature=temperature, top_p=top_p)
    budget = tokens_per_batch or _TOKENS_PER_BATCH.get(policy.model.device.type, 1 << 16)
    texts: list[list[str]] = [[] for _ in prompts]
    done = 0
    for batch in _batches(prompts, samples, max_response_tokens, budget):
        rows = [(prompt, sample) for prompt in batch for sample in range(samples)]
        answers: list[Answer] = sample_answers(
            policy.model,
            [prompts[prompt] for prompt, _ in rows],
            [answer_seed(seed, prompts[prompt], sample) for prompt, sample in rows],
            rule,
            max_tokens=max_response_tokens,
            stop_ids=policy.stop_ids,
            pad_id=policy.pad_id,
        )
        decoded = policy.tokenizer.batch_decode([answer.token_ids for answer in answers], skip_special_tokens=True)
        for (prompt, _), text in zip(rows, decoded, strict=True):
            texts[prompt].append(text)
        done += len(batch)
        if progress is not None:
            progress(done, len(prompts))
    return texts


def sample_scores(
    policy: Policy,
    messages: Sequence[Sequence[Message]],
    answers: Sequence[str],
    *,
    score: Callable[[str, str], float],
    samples: int,
    temperature: float,
    max_response_tokens: int,
    seed: int,
    progress: Progress | None = None,
    tokens_per_batch: int | None = None,
) -> np.ndarray:
    """How right the policy's answers are.

    Args:
        messages: n chats.
        answers: n reference answers.
        score: the verifier, (response, reference answer) → reward in [0, 1].
        samples: answers per prompt.
        temperature: 0 is greedy and needs `samples=1`.
        seed: every prompt draws from a stream of its own, made of this seed and its tokens.
        progress: called after each batch.
        tokens_per_batch: bound on prompt and answer tokens in one batch, padding included.

    Returns:
        float [n, samples], in the order of `messages`.
    """
    if len(messages) != len(answers):
        raise ValueError(f"{len(messages)} prompts, {len(answers)} answers")
    texts = sample_texts(
        policy,
        messages,
        samples=samples,
        temperature=temperature,
        max_response_tokens=max_response_tokens,
        seed=seed,
        progress=progress,
        tokens_per_batch=tokens_per_batch,
    )
    scores = [[score(text, answer) for text in row] for row, answer in zip(texts, answers, strict=True)]
    return np.array(scores, dtype=np.float64).reshape(len(texts), samples)


def _batches(prompts: list[list[int]], samples: int, max_tokens: int, budget: int) -> Iterator[list[int]]:
    """Prompt numbers in order of length, cut so that no batch exceeds the token budget (one prompt always fits)."""
    batch: list[int] = []
    for number in sorted(range(len(prompts)), key=lambda n: (len(prompts[n]), n)):
        rows = (len(batch) + 1) * samples
        if batch and rows * (len(prompts[number]) + max_tokens) > budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
