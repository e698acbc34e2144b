"""Tokens that are counted without transformers are those that the reader will see."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from saerl_core import locations, models
from saerl_core.errors import ModelError
from saerl_core.token_estimate import CHARACTERS_PER_TOKEN, token_counts

PROMPTS = [[{"role": "user", "content": text}] for text in ("a", "A fox has 12 hens. It eats 3.", "x^2 + π = 7\n\n?")]
PROMPTS.append([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}])


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    folder = tmp_path / "lm"
    shutil.copytree(locations.resolve("saerl:toy/lm", Path()), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.mark.parametrize("chat_template", [True, False])
def test_counts_are_those_of_the_reader(lm: Path, chat_template: bool) -> None:
    tokenizer = models.load_tokenizer(lm)
    expected = [len(models.render(tokenizer, chat, chat_template=chat_template)) for chat in PROMPTS]
    assert token_counts(lm, PROMPTS, chat_template=chat_template) == expected


def test_a_template_in_the_tokenizers_settings_counts(lm: Path) -> None:
    with_file = token_counts(lm, PROMPTS, chat_template=True)
    settings = json.loads((lm / "tokenizer_config.json").read_text())
    template = (lm / "chat_template.jinja")
    (lm / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template.read_text()}))
    template.unlink()
    assert token_counts(lm, PROMPTS, chat_template=True) == with_file


def test_a_template_that_wants_more_is_left_out(lm: Path) -> None:
    (lm / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}{{ messages[0]['content'] }}")
    assert token_counts(lm, PROMPTS, chat_template=True) == token_counts(lm, PROMPTS, chat_template=False)


def test_without_a_tokenizer_characters_are_counted(lm: Path) -> None:
    guessed = [len("\n\n".join(message["content"] for message in chat)) / CHARACTERS_PER_TOKEN for chat in PROMPTS]
    assert token_counts(None, PROMPTS, chat_template=True) == guessed
    (lm / "tokenizer.json").unlink()
    assert token_counts(lm, PROMPTS, chat_template=True) == guessed


def test_a_broken_tokenizer_is_named(lm: Path) -> None:
    (lm / "tokenizer.json").write_bytes(b"{")
    with pytest.raises(ModelError, match="lm: no usable tokenizer"):
        token_counts(lm, PROMPTS, chat_template=True)
