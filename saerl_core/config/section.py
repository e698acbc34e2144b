"""What every section of the config is made of, and which of its fields belong in a cache key."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

INCIDENTAL = object()
"""Marks fields that say where something is or how fast it goes. They change no result, so they are in no cache key:
what lies at a place counts by its content hash."""

Place = Annotated[str, INCIDENTAL]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31 - 1)]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def content(section: Section) -> dict[str, Any]:
    """A section as JSON values, without what is incidental: the part that belongs in a cache key."""
    kept = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if INCIDENTAL not in field.metadata:
            kept[name] = _content(value)
    return kept


def _content(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_content(item) for item in value]
    return content(value) if isinstance(value, Section) else value
