"""Commands on the embedded toy world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.conventions import AsJson, print_json, tell

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="The embedded toy world.")


@app.command()
def build(out: Annotated[Path, typer.Argument(help="A new folder.")], as_json: AsJson = False) -> None:
    """Make the embedded toy again from nothing: data, tokenizer, tiny Qwen2, TopK SAE. Takes minutes."""
    from flows.terminal import watching
    from saerl_core.toy.build import build as build_toy
    from tasks import progress

    with watching():
        card = build_toy(out, progress=lambda stage, done, total: progress.tell(stage, done, total))
    if as_json:
        print_json({"toy": str(out), "card": card})
    else:
        tell(f"toy: {out}")
