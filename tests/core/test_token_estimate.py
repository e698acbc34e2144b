"""Tokens that are counted without transformers are those that the reader will see."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from tokenizers import Tokenizer

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


def test_padding_and_truncation_that_a_file_has_stored_count_for_nothing(lm: Path) -> None:
    expected = token_counts(lm, PROMPTS, chat_template=True)
    tokenizer = Tokenizer.from_file(str(lm / "tokenizer.json"))
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(max_length=3)
    tokenizer.save(str(lm / "tokenizer.json"))
    assert token_counts(lm, PROMPTS, chat_template=True) == expected


def test_a_template_that_refuses_a_prompt_says_so_before_the_run_and_in_it(lm: Path) -> None:
    (lm / "chat_template.jinja").write_text("{% for m in messages %}{% if m.role == 'system' %}"
                                            "{{ raise_exception('System role not supported') }}{% endif %}"
                                            "{{ m.content }}{% endfor %}")
    tokenizer = models.load_tokenizer(lm)
    assert token_counts(lm, PROMPTS[:3], chat_template=True) == [
        len(models.render(tokenizer, chat, chat_template=True)) for chat in PROMPTS[:3]]
    for count in (partial(token_counts, lm), partial(models.render_all, tokenizer)):
        with pytest.raises(ModelError, match=r"lm: its chat template refuses a prompt: System role not supported"):
            count(PROMPTS, chat_template=True)


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
