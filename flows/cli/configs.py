"""Commands on configs: write one, explain its fields, check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.conventions import DEFAULT_CONFIG, AsJson, ConfigArgument, Overrides, load, print_json, starter, tell
from saerl_core.artifact import write_file
from saerl_core.errors import ConfigError


def init(path: Annotated[Path, typer.Argument(help="Where to write it.")] = DEFAULT_CONFIG) -> None:
    """Write a starter config: the toy run, each field explained, ready to be pointed at your own data."""
    if path.exists():
        raise ConfigError(f"{path}: exists already; `saerl init OTHER.yaml` writes elsewhere")
    write_file(path, starter().encode())
    tell(f"wrote {path}: edit it, then `saerl check {path}`")


def fields(
    section: Annotated[str, typer.Argument(help="For example `schedule` or `labels.server`. Default: all.")] = "",
    as_json: AsJson = False,
) -> None:
    """Explain the fields of a config: name, default, what it does."""
    from dataclasses import asdict

    from flows.fields import about
    from flows.fields import fields as find
    from flows.terminal import show_fields

    found = find(section)
    if as_json:
        print_json({field.name: asdict(field) for field in found})
    else:
        show_fields(about(section), found)


def check(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Validate a config end to end in seconds: files and columns, SAE against model, verl's own configuration.

    Prints what the run will cost: prompts, tokens, disk, time. Starts nothing and writes nothing.
    """
    from flows.check import check_run, show_check

    found = check_run(load(config, overrides))
    if as_json:
        print_json(found)
    else:
        show_check(found)
