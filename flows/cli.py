"""The `saerl` command. Errors that a user can mend take one line and exit code 2; nothing else is hidden."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saerl_core.artifact import write_file
from saerl_core.config import RunConfig, load_config
from saerl_core.errors import ConfigError, SaerlError, ServerError

if TYPE_CHECKING:
    from saerl_core.published import Run

# Before anything imports Prefect, transformers or OpenMP. What the user has set stays.
for _name, _value in {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # our lines in place of Prefect's log
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "OMP_WAIT_POLICY": "passive",  # spinning threads cost up to 30x where cores are few
}.items():
    os.environ.setdefault(_name, _value)

DEFAULT_CONFIG = Path("saerl.yaml")
_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""

app = typer.Typer(
    name="saerl", no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    add_completion=False,
    help="""Which prompts, in which order, in which batch? SAERL curates RL prompts with a model's own SAE features,
then trains on them with verl.

Try it: `saerl run` curates and trains the toy that ships with SAERL.
Use it: `saerl init` writes a config, `saerl check` tells what is wrong with it and what it will cost, `saerl run` runs
it. A second run does only what has changed.""")
manifest_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Look at manifests, and check them.")
toy_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="The embedded toy world.")
app.add_typer(manifest_app, name="manifest")
app.add_typer(toy_app, name="toy")

ConfigArgument = Annotated[Path | None, typer.Argument(
    metavar="[CONFIG]", help="The run's YAML file. Default: `saerl.yaml` here, else the embedded toy.")]
Overrides = Annotated[list[str] | None, typer.Option(
    "--set", "-s", metavar="SECTION.FIELD=VALUE", help="Change a field of the config; may be given several times.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


@app.command()
def init(path: Annotated[Path, typer.Argument(help="Where to write it.")] = DEFAULT_CONFIG) -> None:
    """Write a starter config: the toy run, each field explained, ready to be pointed at your own data."""
    if path.exists():
        raise ConfigError(f"{path}: exists already; `saerl init OTHER.yaml` writes elsewhere")
    write_file(path, _starter().encode())
    _tell(f"wrote {path}: edit it, then `saerl check {path}`")


@app.command("fields")
def show_fields(
    section: Annotated[str, typer.Argument(help="For example `schedule` or `labels.server`. Default: all.")] = "",
    as_json: AsJson = False,
) -> None:
    """Explain the fields of a config: name, default, what it does."""
    from dataclasses import asdict

    from flows.fields import about, fields
    from flows.terminal import show_fields as show

    found = fields(section)
    if as_json:
        _print_json({field.name: asdict(field) for field in found})
    else:
        show(about(section), found)


@app.command()
def check(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Validate a config end to end in seconds: files and columns, SAE against model, verl's own configuration.

    Prints what the run will cost: prompts, tokens, disk, time. Starts nothing and writes nothing.
    """
    from flows.check import check_run, show_check

    found = check_run(_load(config, overrides))
    if as_json:
        _print_json(found)
    else:
        show_check(found)


@app.command()
def run(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Curate the prompts into a manifest, train on it with verl, measure before and after.

    Run it again at any time: what has not changed is taken from the cache, what was interrupted goes on.
    """
    _run_flow(_load(config, overrides), as_json, train=True)


@app.command()
def curate(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Curate the prompts into a manifest; train nothing."""
    _run_flow(_load(config, overrides), as_json, train=False)


@app.command()
def train(
    manifest: Annotated[Path, typer.Argument(help="A manifest's folder.")],
    config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False,
) -> None:
    """Train the config's policy on a manifest that exists, batch for batch in its order; resume where it stopped."""
    from flows.check import check_training

    settings = _load(config, overrides)
    check_training(settings, manifest)

    def go() -> dict[str, Any]:
        from flows.outcome import manifest_figures
        from flows.train import train as train_flow

        return {**manifest_figures(manifest), "train": train_flow(settings, manifest)}

    _finish(go, as_json)


@app.command()
def export(
    manifest: Annotated[Path, typer.Argument(help="A manifest's folder.")],
    out: Annotated[Path, typer.Argument(help="A file (jsonl) or folder (datasets) that does not exist yet.")],
    kind: Annotated[str, typer.Option("--format", metavar="jsonl|datasets", help="What to write.")] = "jsonl",
    as_json: AsJson = False,
) -> None:
    """Write a manifest's training rows for another trainer, in the same order; the manifest is verified first.

    `jsonl`: one object a line, with `messages`, `answer`, `id`, `batch`, `cluster`, `difficulty` and `quality`.

    `datasets`: a folder for `datasets.load_from_disk`, with `prompt` (chat messages) in place of `messages`. TRL's
    `GRPOTrainer` reads it as it is. The order is yours to keep: `GRPOConfig(shuffle_dataset=False, num_iterations=1,
    num_train_epochs=1)`, and batches of the manifest's size: `generation_batch_size` (samples of one optimiser step
    over all devices) = `num_generations` x the number of rows that share a `batch`. Epochs are in the file already.
    """
    from saerl_core.export import FORMATS
    from saerl_core.export import export as write

    if kind not in FORMATS:
        raise ConfigError(f"--format {kind}: unknown; known: {', '.join(FORMATS)}")
    rows = write(manifest, out, kind)
    if as_json:
        _print_json({"manifest": str(manifest), "out": str(out), "format": kind, "rows": rows})
    else:
        _tell(f"wrote {out}: {rows} rows in training order")


@app.command("train-sae")
def train_sae(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train an SAE for the reader, `features.model`, on your prompts or a corpus of yours, with sae-lens.

    The section `sae_training` says how; `sae_training: {}` takes every default. The SAE is written to the folder that
    `features.sae` (or `sae_training.out`) names, with a report page, and is measured on text that was held out:
    explained variance, features a token, dead features, loss recovered. Run it again at any time: what was interrupted
    goes on, what is done is not done again.
    """
    settings = _load(config, overrides)
    from flows.check import check_sae_training
    from flows.terminal import show_sae, watching

    check_sae_training(settings)
    with watching():
        from flows.train_sae import train_sae as train_sae_flow

        outcome = train_sae_flow(settings)
    if as_json:
        _print_json(outcome)
    else:
        show_sae(outcome)
        _tell(f"report: {Path(outcome['sae']) / 'report.html'}")
        _tell(f"sae: {outcome['sae']}")


@app.command()
def serve(
    config: ConfigArgument = None, overrides: Overrides = None,
    port: Annotated[int | None, typer.Option(help="The server's port. Default: 4200 if free, else a free one.")] = None,
) -> None:
    """Keep a config going on this machine: server, UI, worker, watcher and deployments, until Ctrl-C.

    Curates every night and whenever the data or the SAE change, trains on every new manifest (if `data.heldout` is
    set), and shows it all in the Prefect UI. Everything listens on 127.0.0.1 only; database and logs lie in the
    workspace, under `server/`. What was interrupted goes on at the next `saerl serve`.
    """
    from flows.check import check_inputs
    from flows.serve import serve as serve_config

    settings = _load(config, overrides)
    check_inputs(settings, train=settings.data.heldout is not None)
    serve_config(settings, port=port, tell=lambda line: typer.echo(f"{line} ...", err=True),
                 ready=lambda url: _tell(f"serving {settings.name}: {url}\nCtrl-C stops everything"))


@app.command()
def deploy(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Put a config's deployments (curate, train, pipeline) on the Prefect server that PREFECT_API_URL names.

    Workers of the pool `saerl` then run them: by schedule, when `saerl watch` sees a change, or from the UI. Run it
    again after a change of the config. `saerl serve` needs none of this.
    """
    from flows.deploy import deploy as deploy_config

    _need_server("saerl deploy")
    names = deploy_config(_load(config, overrides))
    if as_json:
        _print_json({"deployments": names})
    else:
        _tell("deployed " + ", ".join(names))


@app.command()
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
    watch_config(_load(config, overrides), once=once,
                 told=lambda change: _tell(f"{change.source.kind} changed: {change.source.name}"))


@app.command()
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

    root = _load(config, overrides).root
    found = collector.remove(root) if delete else collector.find(root)
    if as_json:
        _print_json({"workspace": str(root), "removed": delete, **asdict(found)})
    else:
        show_garbage(root, found, removed=delete)


@manifest_app.command()
def verify(manifest: Annotated[Path, typer.Argument(help="A manifest's folder.")], as_json: AsJson = False) -> None:
    """Check every byte of a manifest against the hashes in its header, and the header against the folder's name."""
    from saerl_core.manifest import verify_manifest

    header = verify_manifest(manifest)
    if as_json:
        _print_json({"manifest": str(manifest), "id": header["id"], "intact": True, "files": len(header["files"]) + 1})
    else:
        _tell(f"{manifest}: intact, {len(header['files']) + 1} files")


@manifest_app.command()
def show(manifest: Annotated[Path, typer.Argument(help="A manifest's folder.")], as_json: AsJson = False) -> None:
    """Show what a manifest holds: counts, what each gate decided, where the report page is."""
    from saerl_core.manifest import read_manifest

    header, runs = read_manifest(manifest), _runs_of(manifest)
    if as_json:
        _print_json(header)
        return
    from flows.outcome import manifest_figures
    from flows.terminal import console, show_counts
    from saerl_core.report.facts import findings

    show_counts(manifest_figures(manifest))
    gates = [(stage, header[stage]["why"]) for stage in ("difficulty", "quality")]
    for name, words in [*gates, *findings(header)]:
        console.print(f"  {name}: {words}", markup=False, soft_wrap=True)
    for warning in (*header["health"]["warnings"], *header["notes"]):
        console.print(f"  note: {warning}", markup=False, soft_wrap=True)
    for run in runs:
        console.print(f"  made by: flow run {run.name} ({run.flow_run_id}), {run.at}", markup=False,
                      soft_wrap=True)
    _tell(f"report: {manifest / 'report.html'}")


@manifest_app.command("diff")
def diff_manifests(
    a: Annotated[Path, typer.Argument(help="A manifest's folder, usually the older one.")],
    b: Annotated[Path, typer.Argument(help="Another one.")], as_json: AsJson = False,
) -> None:
    """Say what differs between two manifests, and why: inputs, settings, versions, and what became of each prompt.

    A prompt is known by its text and answer, wherever it stands in the file. Both manifests are verified first. Exit
    code 0 whether they are equal or not.
    """
    from flows.terminal import show_diff
    from saerl_core.diff import diff

    found = diff(a, b)
    if as_json:
        _print_json(found)
    else:
        show_diff(found)
        _tell(found["why"])


@toy_app.command("build")
def toy_build(out: Annotated[Path, typer.Argument(help="A new folder.")], as_json: AsJson = False) -> None:
    """Make the embedded toy again from nothing: data, tokenizer, tiny Qwen2, TopK SAE. Takes minutes."""
    from flows.terminal import watching
    from saerl_core.toy.build import build
    from tasks.progress import tell

    with watching():
        card = build(out, progress=lambda stage, done, total: tell(stage, done, total))
    if as_json:
        _print_json({"toy": str(out), "card": card})
    else:
        _tell(f"toy: {out}")


def _runs_of(manifest: Path) -> list[Run]:
    """The flow runs that gave a manifest, where the workspace around it knows."""
    from saerl_core import published

    folder = manifest.resolve()
    record = published.read(folder.parent.parent, folder.name)
    return record.runs if record else []


def _run_flow(config: RunConfig, as_json: bool, *, train: bool) -> None:
    from flows.check import check_inputs

    check_inputs(config, train=train)  # what a user did wrong shows before the server starts

    def go() -> dict[str, Any]:
        from flows.curate import curate as curate_flow
        from flows.outcome import manifest_figures

        if train:
            from flows.pipeline import pipeline

            return pipeline(config)
        curated = curate_flow(config)
        return {**manifest_figures(curated.manifest.path), **curated.figures()}

    _finish(go, as_json)


def _finish(go: Callable[[], dict[str, Any]], as_json: bool) -> None:
    import httpx

    from flows.guard import guard
    from flows.terminal import show_counts, watching

    guard()  # Prefect's server and verl's processes end with this one, however it ends
    with watching():
        try:
            outcome = go()
        except httpx.TransportError as error:
            raise ServerError(f"the Prefect server went away ({type(error).__name__}: {error}): start it again, then "
                              "run the same command: it goes on where it stopped") from error
    if as_json:
        _print_json(outcome)
    else:
        show_counts(outcome)
        _tell(f"report: {Path(outcome['manifest']) / 'report.html'}")
        _tell(f"manifest: {outcome['manifest']}")


def _need_server(command: str) -> None:
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:
        raise ConfigError(f"{command} needs a Prefect server: set PREFECT_API_URL (http://127.0.0.1:4200/api), or use "
                          "`saerl serve`, which brings its own")


def _load(path: Path | None, overrides: list[str] | None) -> RunConfig:
    changes = tuple(overrides or ())
    if path is not None or DEFAULT_CONFIG.exists():
        return load_config(path or DEFAULT_CONFIG, changes)
    return load_config(Path(str(resources.files("flows") / "starter.yaml")), changes, base=Path.cwd())


def _starter() -> str:
    return (resources.files("flows") / "starter.yaml").read_text(encoding="utf-8")


def _tell(line: str) -> None:
    typer.echo(line)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def main() -> None:
    """Entry point of the `saerl` command."""
    try:
        app(standalone_mode=True)
    except SaerlError as error:
        sys.stderr.write(f"saerl: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stderr.write(f"saerl: {error.filename or 'a file'}: {error.strerror}; nothing half-written was kept: make "
                         "room (`saerl gc` shows what nothing refers to), then run the same command again\n")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            sys.stderr.write("saerl: interrupted; the same command goes on where it stopped\n")
        raise


if __name__ == "__main__":
    main()
