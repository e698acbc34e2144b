"""How many tokens prompts have, told without transformers, whose import takes seconds.

The tokenizer's own file is read by `tokenizers`, the chat template by jinja2, in a sandbox as transformers does it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from saerl_core.errors import ModelError
from saerl_core.models import refused

CHARACTERS_PER_TOKEN = 3.5
"""A guess, where no tokenizer is at hand."""


def token_counts(folder: Path | None, prompts: Sequence[list[dict[str, str]]], *, chat_template: bool) -> list[float]:
    """Tokens of each prompt as a model would see it.

    Args:
        folder: The model's; None where it is not on this machine.
        prompts: Chat messages, one list a prompt.
        chat_template: Whether prompts are rendered with the model's template. A template that wants more than messages
            is left out.

    Returns:
        Counts; guessed from the number of characters where the folder holds no `tokenizer.json`.

    Raises:
        ModelError: `tokenizer.json` is broken, or the template refuses a prompt.
    """
    texts = ["\n\n".join(message["content"] for message in chat) for chat in prompts]
    if folder is None or not (folder / "tokenizer.json").is_file():
        return [len(text) / CHARACTERS_PER_TOKEN for text in texts]
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # its library raises nothing more special
        raise ModelError(f"{folder}: no usable tokenizer: {' '.join(str(error).split())[:200]}") from error
    tokenizer.no_padding()  # as transformers sets it
    tokenizer.no_truncation()
    rendered = _render(folder, prompts) if chat_template else None
    encoded = tokenizer.encode_batch(rendered or texts, add_special_tokens=rendered is None)
    return [float(len(one)) for one in encoded]


def _render(folder: Path, prompts: Sequence[list[dict[str, str]]]) -> list[str] | None:
    """Prompts in the model's chat template; None where it has none, or asks for what is not known here."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    settings = _settings(folder / "tokenizer_config.json")
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
    if not isinstance(source, str):
        return None
    tokens = {name: settings[name] for name in ("bos_token", "eos_token") if isinstance(settings.get(name), str)}

    def refuse(words: str) -> None:
        raise refused(folder, words)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                            extensions=["jinja2.ext.loopcontrols"])
    sandbox.globals["raise_exception"] = refuse
    try:
        template = sandbox.from_string(source)
        return [template.render(messages=chat, add_generation_prompt=True, **tokens) for chat in prompts]
    except TemplateError:
        return None


def _settings(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
