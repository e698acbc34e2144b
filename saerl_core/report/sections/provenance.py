"""What the manifest is a function of: inputs, settings, versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saerl_core.report.facts import part
from saerl_core.report.markup import shorten

_ROLES = {"data": "prompts", "heldout": "held-out set", "decontaminate": "evaluation set", "model": "reader",
          "sae": "SAE", "policy": "policy", "rewards": "rewards of an earlier training"}


def section(header: Mapping[str, Any]) -> dict[str, Any]:
    """What `provenance.html.jinja` prints."""
    return {"inputs": _inputs(header), "settings": _settings(header), "libraries": header.get("libraries") or {}}


def _inputs(header: Mapping[str, Any]) -> list[dict[str, str]]:
    inputs = part(header, "inputs")
    made = []
    for key in [*(key for key in _ROLES if key in inputs), *sorted(set(inputs) - set(_ROLES))]:
        for source in inputs[key] if isinstance(inputs[key], list) else [inputs[key]]:
            if not source:
                continue
            words = ", ".join(f"{name} {value}" for name, value in source.items()
                              if name != "sha256" and value is not None)
            made.append({"role": _ROLES.get(key, key), "sha256": str(source.get("sha256") or "–"),
                         "words": shorten(words, 160)})
    return made


def _settings(header: Mapping[str, Any]) -> list[dict[str, Any]]:
    loose, sections = [], []
    for name, value in part(header, "settings").items():
        if isinstance(value, Mapping):
            sections.append({"name": name, "entries": _flat(value)})
        else:
            loose.append((name, _setting(value)))
    return ([{"name": "run", "entries": loose}] if loose else []) + sections


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    entries = []
    for key, value in tree.items():
        entries += (_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping)
                    else [(f"{prefix}{key}", _setting(value))])
    return entries


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return shorten(", ".join(map(str, value)), 300)
    return "–" if value is None or value == "" else shorten(str(value), 300)
