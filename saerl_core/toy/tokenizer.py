"""The toy's tokenizer: byte-level BPE with one token a digit, in the very class that transformers reloads.

`AutoTokenizer` gives every model of type qwen2 a `Qwen2Tokenizer`, which takes only vocabulary and merges from the
file and brings its own pre-tokenizer and normaliser (NFC). So the merges are learned behind that same pre-tokenizer;
a tokenizer of any other build would split text differently after a round trip through the disk, and say nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

VOCAB_SIZE = 512
PAD, END = "<|pad|>", "<|end|>"
PAD_ID, END_ID = 0, 1
_ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
_MAX_TOKENS = 512

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""`<|system|>TEXT<|user|>TEXT<|assistant|>`; an assistant's turn ends with `<|end|>`."""


def train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Learn 512 tokens: 5 special ones, 256 bytes, the rest merges within words of `texts`."""
    special = [PAD, END, *_ROLES]
    learner = Tokenizer(models.BPE())
    pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    assert pre_tokenizer is not None
    learner.pre_tokenizer = pre_tokenizer
    learner.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],  # pyright: ignore[reportArgumentType]
        unk_token=None,  # pyright: ignore[reportArgumentType] - bytes leave nothing unknown
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(_ROLES),
        padding_side="left",
        model_max_length=_MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def render_prompt(tokenizer: Qwen2Tokenizer, problem: str) -> str:
    """A problem as the model sees it before it answers."""
    messages = [{"role": "user", "content": problem}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
