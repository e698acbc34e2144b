"""Models on disk: where they are, what they are by content, and their shape without loading a weight."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from saerl_core import locations
from saerl_core.errors import ModelError
from saerl_core.hashing import hash_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTENT = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.py")
"""The files that make a model what it is. No pickled weights: only safetensors are read. Code runs only where
`trust_remote_code` says so."""

UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)
"""What transformers, tokenizers and sae-lens raise for a folder that they cannot read."""


@dataclass(frozen=True)
class ModelSpec:
    """A causal LM's shape, from its `config.json`."""

    architecture: str
    """The class that it was saved from."""
    layers: int
    d_model: int
    max_positions: int
    bytes_on_disk: int


def fetch(name: str, base: Path) -> Path:
    """The folder of a model named by path, `saerl:` name or hub id, downloaded where it must be.

    Raises:
        ModelError: there is no such folder, or the hub does not give it.
    """
    folder = find(name, base)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_CONTENT)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(f"{name}: no such folder, and the model hub does not give it: {_one_line(error)}") from error


def find(name: str, base: Path) -> Path | None:
    """The folder of a model that is on this machine; None for a hub id that has not been downloaded, or not all of it.

    Raises:
        ModelError: `name` is a path and no model lies there.
    """
    path = locations.resolve(name, base)
    if (path / "config.json").is_file():
        if not any(path.glob("*.safetensors")):
            raise ModelError(f"{path}: no safetensors there; weights in another format are pickles, which SAERL does "
                             "not read: save the model anew with transformers' `save_pretrained`")
        return path
    if locations.is_local(name) or path.exists() or name.count("/") != 1:
        raise ModelError(f"{path}: no model there (no config.json)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_CONTENT), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if _has_weights(folder) else None


def _has_weights(folder: Path) -> bool:
    """Whether all safetensors of a model are there: what loads a tokenizer leaves a folder without any."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return all((folder / name).is_file() for name in set(index["weight_map"].values()))
    except FileNotFoundError:
        return any(folder.glob("*.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def model_hash(folder: Path) -> str:
    """Content hash of a model folder: configuration, weights, tokenizer."""
    return hash_files(folder, (file for pattern in _CONTENT for file in folder.glob(pattern) if file.is_file()))


def read_spec(folder: Path) -> ModelSpec:
    """Shape of the model in `folder`.

    Raises:
        ModelError: `config.json` is broken or is not a decoder's.
    """
    config = _read_config(folder)
    text = config.get("text_config", config)  # multimodal configurations nest the language model
    try:
        return ModelSpec(
            architecture=str((config.get("architectures") or ["unknown"])[0]),
            layers=int(text["num_hidden_layers"]),
            d_model=int(text["hidden_size"]),
            max_positions=int(text["max_position_embeddings"]),
            bytes_on_disk=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'}: {error} missing or not a number: not a decoder model?") from error


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except UNREADABLE as error:
        raise ModelError(f"{folder}: no usable tokenizer: {_one_line(error)}") from error


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, chat_template: bool) -> list[int]:
    """Token ids of a prompt as a model sees it before it answers."""
    return render_all(tokenizer, [messages], chat_template=chat_template)[0]


def render_all(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[dict[str, str]]], *,
               chat_template: bool) -> list[list[int]]:
    """`render` of many prompts, in a fraction of the time: a fast tokenizer takes them all at once.

    Raises:
        ModelError: the chat template refuses a prompt, as some do a system message.
    """
    if not prompts:
        return []
    if chat_template and tokenizer.chat_template:
        from jinja2 import TemplateError

        try:
            texts: Any = tokenizer.apply_chat_template(list(prompts), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise refused(tokenizer.name_or_path, error) from error
        return _ids(tokenizer(texts, add_special_tokens=False))
    return _ids(tokenizer(["\n\n".join(message["content"] for message in messages) for messages in prompts]))


def refused(model: str | Path, why: Exception | str) -> ModelError:
    """The error for a chat template that refuses a prompt."""
    return ModelError(f"{model}: its chat template refuses a prompt: {_one_line(why)}; look at the roles of its "
                      "messages, and at data.system")


def _ids(encoded: Any) -> list[list[int]]:
    return encoded["input_ids"]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no model there (no config.json)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: unreadable: {_one_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return config


def _one_line(error: BaseException | str) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
