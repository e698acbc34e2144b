"""Commands that keep a config going on a Prefect server: serve, deploy, watch, gc."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.conventions import AsJson, ConfigArgument, Overrides, load, print_json, tell
from saerl_core.errors import ConfigError


def serve(
    config: ConfigArgument = None, overrides: Overrides = None,
    port: Annotated[int | None, typer.Option(
        min=1, max=65535, help="The server's port. Default: 4200 if free, else a free one.")] = None,
) -> None:
    """Keep a config going on this machine: server, UI, worker, watcher and deployments, until Ctrl-C.

    Curates every night and whenever the data or the SAE change, trains on every new manifest (if `data.heldout` is
    set), and shows it all in the Prefect UI. Everything listens on 127.0.0.1 only; database and logs lie in the
    workspace, under `server/`. What was interrupted goes on at the next `saerl serve`.
    """
    from flows.check import check_inputs
    from flows.serve import serve as serve_config

    settings = load(config, overrides)
    check_inputs(settings, train=settings.data.heldout is not None)
    serve_config(settings, port=port, tell=lambda line: typer.echo(f"{line} ...", err=True),
                 ready=lambda url: tell(f"serving {settings.name}: {url}\nCtrl-C stops everything"))


def deploy(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Put a config's deployments (curate, train, pipeline) on the Prefect server that PREFECT_API_URL names.

    Workers of the pool `saerl` then run them: by schedule, when `saerl watch` sees a change, or from the UI. Run it
    again after a change of the config. `saerl serve` needs none of this.
    """
    from flows.deploy import deploy as deploy_config
    from flows.events import answered

    _need_server("saerl deploy")
    settings = load(config, overrides)
    with answered("deploy again"):
        names = deploy_config(settings)
    if as_json:
        print_json({"deployments": names})
    else:
        tell("deployed " + ", ".join(names))


def watch(
    config: ConfigArgument = None, overrides: Overrides = None,
    once: Annotated[bool, typer.Option("--once", help="Tell what changed since the last look, and end.")] = False,
) -> None:
    """Tell the Prefect server when the content of a config's data or SAE changes; deployments then run.

    Contents count, not times: a file that was touched is no change. What changes while nobody watches is told at the
    next start. Needs PREFECT_API_URL; `saerl serve` has a watcher of its own.
    """
    from flows.watch import watch as watch_config

    _need_server("saerl watch")
    watch_config(load(config, overrides), once=once,
                 told=lambda change: tell(f"{change.source.kind} changed: {change.source.name}"))


def gc(
    config: ConfigArgument = None, overrides: Overrides = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; refused while a run is at work there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what in the workspace no manifest and no training run refers to; with --delete, remove it.

    Manifests and training runs themselves are always kept: delete the folders of those that you no longer want, then
    run this.
    """
    from dataclasses import asdict

    from flows.terminal import show_garbage
    from saerl_core import gc as collector

    root = load(config, overrides).root
    found = collector.remove(root) if delete else collector.find(root)
    if as_json:
        print_json({"workspace": str(root), "removed": delete, **asdict(found)})
    else:
        show_garbage(root, found, removed=delete)


def _need_server(command: str) -> None:
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:
        raise ConfigError(f"{command} needs a Prefect server: set PREFECT_API_URL (http://127.0.0.1:4200/api), or use "
                          "`saerl serve`, which brings its own")
