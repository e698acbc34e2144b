"""A YAML file → `RunConfig`, or one line that says what is wrong with it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from saerl_core.config.run import RunConfig
from saerl_core.errors import ConfigError


def load_config(path: Path, overrides: tuple[str, ...] = (), base: Path | None = None) -> RunConfig:
    """Read a YAML config; `overrides` are `section.field=value` pairs whose values are YAML too.

    Relative paths refer to `base`, by default the folder of the config.

    Raises:
        ConfigError: one line that names the file, the field, its value, and the nearest known field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file; `saerl init` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from error
    try:
        tree = _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as `data:` and `features:`, found {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    return build_config(tree, base=base or path.resolve().parent, where=str(path))


def build_config(tree: dict[str, Any], base: Path, where: str = "config") -> RunConfig:
    """Validate a config tree whose relative paths refer to `base`.

    Raises:
        ConfigError: see `load_config`.
    """
    try:
        return RunConfig.model_validate({"base": str(base), **tree})
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from error


class _Loader(yaml.SafeLoader):
    """Safe, and a key that stands twice is an error: the later one would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.value != "<<"]  # merged: those in here win
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected section.field=value")
    *parents, leaf = key.strip().split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {name!r} is not a section")
        tree = child
    try:
        tree[leaf] = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error


def _first_line(error: ValidationError) -> str:
    """The first of pydantic's errors as one line; unknown keys first, for they explain missing ones."""
    details = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first, fields = details[0], [_field_of(item["type"], item["loc"]) for item in details]
    more = len(set(fields)) - 1
    suffix = f" (and {more} more)" if more else ""
    where = ".".join(fields[0])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}{suffix}"
    if first["type"] == "missing":
        return f"{where} is missing{suffix}"
    message = " or ".join(item["msg"].removeprefix("Value error, ") for item, field in zip(details, fields, strict=True)
                          if field == fields[0])  # a field of several types has an error for each
    if not where or (first["type"] == "value_error" and isinstance(first["input"], dict)):
        return message + suffix  # a check across fields, which names them itself
    value = repr(first["input"])
    return f"{where} = {value if len(value) <= 60 else value[:57] + '...'}: {message}{suffix}"


def _field_of(kind: str, loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The field that an error is about: without the types that pydantic tried there (`literal['auto']`)."""
    return tuple(str(part) for part in loc
                 if kind == "extra_forbidden" or isinstance(part, int) or part.isidentifier())


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in loc:
        if part not in model.model_fields:
            continue  # the name of an arm: its fields are those of every arm
        annotation = model.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
    return sorted(name for name in model.model_fields if name != "base")
