"""`saerl fields`: every field of a config, with its default and what it does, from the config's own docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from saerl_core.config import RunConfig, Section
from saerl_core.errors import ConfigError


@dataclass(frozen=True)
class Field:
    """One field."""

    name: str
    """from the root: `schedule.batch_size`"""
    default: str
    """as YAML would have it; `required` where there is none"""
    about: str
    choices: tuple[str, ...] = ()
    """the words that it takes, where there are several"""


def fields(of: str = "") -> list[Field]:
    """All fields, or those of one section (`schedule`, `labels.server`).

    Raises:
        ConfigError: there is no such section.
    """
    found = [field for field in _walk(RunConfig, "") if not of or field.name == of or field.name.startswith(f"{of}.")]
    if not found:
        sections = ", ".join(name for name, field in RunConfig.model_fields.items() if _section(field.annotation))
        raise ConfigError(f"no section or field {of!r} in a config; sections: {sections}")
    return found


def about(of: str) -> str:
    """The docstring of a section; empty for a field and for the whole."""
    kind: type[Section] | None = RunConfig
    for part in of.split(".") if of else []:
        field = kind.model_fields.get(part) if kind else None
        kind = _section(field.annotation) if field else None
    return inspect.getdoc(kind) or "" if kind and of else ""


def _walk(section: type[Section], prefix: str) -> Iterator[Field]:
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        if prefix == "" and name == "base":
            continue  # set by the reader of the file
        if inner is None or field.default is None or get_origin(field.annotation) is dict:
            about = " ".join((field.description or "").split())
            choices = tuple(_choices(field.annotation))
            yield Field(prefix + name, _default(field), about, choices if len(choices) > 1 else ())
        if inner is not None:
            yield from _walk(inner, f"{prefix}{name}." + ("NAME." if get_origin(field.annotation) is dict else ""))


def _choices(annotation: Any) -> Iterator[str]:
    """The words of every `Literal` in an annotation."""
    for part in get_args(annotation):
        if get_origin(annotation) is Literal:
            yield str(part)
        else:
            yield from _choices(part)


def _default(field: Any) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    match default:
        case None:
            return "null"
        case bool():
            return str(default).lower()
        case tuple():
            return f"[{', '.join(map(str, default))}]"
        case dict():
            return f"{{{', '.join(map(str, default))}}}"
        case str():
            return default or '""'
    return str(default)


def _section(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one (and not a list of them)."""
    kinds = [annotation, *(get_args(annotation) if get_origin(annotation) is not tuple else ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
