"""Commands on manifests that exist: verify, show, diff, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.conventions import AsJson, ManifestArgument, print_json, tell
from saerl_core.errors import ConfigError

if TYPE_CHECKING:
    from saerl_core.published import Run

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Look at manifests, and check them.")


@app.command()
def verify(manifest: ManifestArgument, as_json: AsJson = False) -> None:
    """Check every byte of a manifest against the hashes in its header, and the header against the folder's name."""
    from saerl_core.manifest import verify_manifest

    header = verify_manifest(manifest)
    if as_json:
        print_json({"manifest": str(manifest), "id": header["id"], "intact": True, "files": len(header["files"]) + 1})
    else:
        tell(f"{manifest}: intact, {len(header['files']) + 1} files")


@app.command()
def show(manifest: ManifestArgument, as_json: AsJson = False) -> None:
    """Show what a manifest holds: counts, what each gate decided, where the report page is."""
    from saerl_core.manifest import read_manifest

    header, runs = read_manifest(manifest), _runs_of(manifest)
    if as_json:
        print_json(header)
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
    tell(f"report: {manifest / 'report.html'}")


@app.command()
def diff(a: ManifestArgument, b: ManifestArgument, as_json: AsJson = False) -> None:
    """Say what differs between two manifests, and why: inputs, settings, versions, and what became of each prompt.

    A prompt is known by its text and answer, wherever it stands in the file. Both manifests are verified first. Exit
    code 0 whether they are equal or not.
    """
    from flows.terminal import show_diff
    from saerl_core.diff import diff as compare

    found = compare(a, b)
    if as_json:
        print_json(found)
    else:
        show_diff(found)
        tell(found["why"])


def export(
    manifest: ManifestArgument,
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
        print_json({"manifest": str(manifest), "out": str(out), "format": kind, "rows": rows})
    else:
        tell(f"wrote {out}: {rows} rows in training order")


def _runs_of(manifest: Path) -> list[Run]:
    """The flow runs that gave a manifest, where the workspace around it knows."""
    from saerl_core import published

    folder = manifest.resolve()
    record = published.read(folder.parent.parent, folder.name)
    return record.runs if record else []
