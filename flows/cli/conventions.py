"""What all commands share: how a config is named and changed, where a result goes."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from saerl_core.config import RunConfig, load_config

DEFAULT_CONFIG = Path("saerl.yaml")


def _by_id(named: Path) -> Path:
    """A manifest's folder, also where only its id is given and it lies in the default workspace here."""
    here = Path(RunConfig.model_fields["workspace"].default, "manifests", named)
    return here if len(named.parts) == 1 and not named.exists() and here.exists() else named


ConfigArgument = Annotated[Path | None, typer.Argument(
    metavar="[CONFIG]", help="The run's YAML file. Default: `saerl.yaml` here, else the embedded toy.")]
Overrides = Annotated[list[str] | None, typer.Option(
    "--set", "-s", metavar="SECTION.FIELD=VALUE", help="Change a field of the config; may be given several times.")]
ManifestArgument = Annotated[Path, typer.Argument(help="A manifest's folder, or its id.", callback=_by_id)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


def load(path: Path | None, overrides: list[str] | None) -> RunConfig:
    """The config that a command was given, or the nearest one, with its fields changed as `--set` says."""
    changes = tuple(overrides or ())
    if path is not None or DEFAULT_CONFIG.exists():
        return load_config(path or DEFAULT_CONFIG, changes)
    typer.echo(f"no {DEFAULT_CONFIG} here: this is the toy that ships with SAERL (`saerl init` writes one)", err=True)
    return load_config(Path(str(resources.files("flows") / "starter.yaml")), changes, base=Path.cwd())


def starter() -> str:
    """The text of the config that `saerl init` writes."""
    return (resources.files("flows") / "starter.yaml").read_text(encoding="utf-8")


def tell(line: str) -> None:
    """A line of the result, on stdout."""
    typer.echo(line)


def print_json(value: Any) -> None:
    """The whole result, as one JSON object on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))
