"""What a run looks like in a terminal: a line per stage, a bar on long work, a short table at the end. All on stderr:
stdout carries results only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import decimal
from rich.markdown import Markdown
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from flows.fields import Field
from saerl_core.gc import Findings

if TYPE_CHECKING:
    from flows.stages import StageRecord

console = Console(stderr=True, highlight=False)


@contextmanager
def watching(only: Callable[[StageRecord], bool] | None = None) -> Iterator[None]:
    """Show progress of the flow that runs inside the context, and a line for each stage that ends, or for some."""
    from flows import stages  # Prefect takes a second to import
    from tasks import progress

    columns = (TextColumn("  {task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(),
               TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        rows: dict[str, TaskID] = {}

        def moved(stage: str, done: int, total: int, note: str) -> None:
            if stage not in rows:
                rows[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(rows[stage], completed=done, total=total, note=note)

        def ended(record: StageRecord) -> None:
            if record.stage in rows:
                bars.remove_task(rows.pop(record.stage))
            if only is not None and not only(record):
                return
            how = "[dim]cached[/]" if record.cached else f"{record.seconds:6.1f} s"
            note = f"  {record.note}" if record.note else ""
            console.print(f"  [green]✓[/] {record.stage:<22} {how:>8}", end="")
            console.print(note, markup=False, style="dim")

        with stages.listening(ended), progress.listening(moved):
            yield


def show_counts(outcome: Mapping[str, Any]) -> None:
    """The short table at the end of a run."""
    console.print()
    for name, value in _rows(outcome):
        console.print(f"  {name:<20}", style="dim", end="")
        console.print(value, markup=False, soft_wrap=True)  # a path that is cut short cannot be copied


def show_comparison(outcome: Mapping[str, Any]) -> None:
    """The arms side by side at the end of a comparison."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("arm", "seeds", "final accuracy", f"over {outcome['baseline']} (points)", "steps to its final"):
        table.add_column(name)
    for arm in outcome["arms"]:
        share = arm["reach"]["share"]
        table.add_row(arm["name"], str(arm["final"]["seeds"]), _estimate(arm["final"]), _estimate(arm["gain"], "+"),
                      "never" if share is None else f"{share:.0%}")
    console.print()
    console.print(Padding(table, (0, 0, 0, 2)))
    trained = f"{outcome['trained_now']} of {outcome['trainings']} trainings run now" if outcome["trained_now"] else \
        f"{outcome['trainings']} trainings, none of them new"
    console.print(f"  {trained}; 95% intervals over seeds", style="dim")


def _estimate(found: Mapping[str, Any] | None, sign: str = "") -> str:
    """`+2.9 (+0.4 to +5.4)`, in points."""
    if found is None:
        return "–"
    values = [found[name] for name in ("mean", "low", "high")]
    mean, low, high = ("" if value is None else f"{100 * value:{sign}.1f}" for value in values)
    return f"{mean} ({low} to {high})" if low else mean


def show_fields(about: str, fields: Iterable[Field]) -> None:
    """Fields of a config, to be read: on stdout, for they are the result."""
    page = Console(highlight=False)
    if about:
        page.print(Markdown(about), "")
    for field in fields:
        page.print(f"[bold]{field.name}[/]  ", end="")
        page.print(f"{field.default}", markup=False, style="cyan", soft_wrap=True)
        words = f"{field.about} One of: {', '.join(field.choices)}." if field.choices else field.about
        page.print(Padding(Text(words), (0, 0, 0, 4)))


def show_sae(outcome: Mapping[str, Any]) -> None:
    """The short table at the end of an SAE's training."""
    from saerl_core.report.sae_training import lead

    console.print()
    console.print(lead(outcome), markup=False)


def show_garbage(workspace: Path, found: Findings, *, removed: bool) -> None:
    """What nothing refers to, the largest first."""
    for item in sorted(found.garbage, key=lambda item: -item.bytes):
        console.print(f"  {decimal(item.bytes):>10}  {item.kind:<10} {item.path.relative_to(workspace)}", markup=False,
                      soft_wrap=True)
    for note in found.notes:
        console.print(f"  note: {note}", markup=False, soft_wrap=True)
    total = decimal(sum(item.bytes for item in found.garbage))
    what = f"{len(found.garbage)} removed" if removed else f"{len(found.garbage)} that nothing refers to"
    more = "" if removed or not found.garbage else "; --delete removes them"
    console.print(f"  {total:>10}  in {what}, {decimal(found.kept_bytes)} kept{more}", markup=False)


_LONG = 100
_MOVES = {"came": "new in B", "went": "gone from B", "left_out": "kept, now dropped", "taken_up": "dropped, now kept",
          "other_reason": "dropped for another reason", "other_cluster": "in another cluster",
          "other_batch": "in another batch"}


def show_diff(found: Mapping[str, Any]) -> None:
    """What differs between two manifests, a short table for each kind of difference (`saerl_core.diff`)."""
    console.print(f"  A {found['a']}\n  B {found['b']}", markup=False)
    for kind in ("inputs", "settings", "libraries", "counts", "figures"):
        if found[kind]:
            console.print(f"\n  [bold]{kind}[/]")
        for change in found[kind]:
            console.print(f"    {change['name']}: {_value(change['a'])} → {_value(change['b'])}", markup=False,
                          soft_wrap=True)
    if found["equal"]:
        return
    console.print("\n  [bold]prompts[/]")
    console.print(f"    in both: {found['prompts']['common']}", markup=False)
    for kind, words in _MOVES.items():
        moved = found["prompts"][kind]
        if moved["total"]:
            shown = "; ".join(map(_example, moved["examples"])) + ("; ..." if moved["total"] > len(moved["examples"])
                                                                   else "")
            console.print(f"    {words}: {moved['total']}", end="")
            console.print(f"  {shown}", markup=False, soft_wrap=True, style="dim")
    order, agreement = found["order"], found["clusters"]["agreement"]
    if agreement is not None:
        console.print(f"    agreement of the clusters: {agreement:.3f} (adjusted mutual information)")
    if order["spearman"] is not None:
        console.print(f"    order of the {order['prompts']} that both train on: rank correlation "
                      f"{order['spearman']:.3f}")
    console.print()


def _example(moved: Mapping[str, Any]) -> str:
    """`train-00010: kept → beyond_steps`."""
    sides = [str(moved[name]) if moved[name] is not None else "kept" for name in moved if name != "id"]
    return f"{moved['id']}: {' → '.join(sides)}"


def _value(value: Any) -> str:
    """What is missing as a dash, what is long (a hash, a list of files) by its beginning."""
    if isinstance(value, str) and len(value) >= 64:
        return ", ".join(part[:12] for part in value.split(", "))
    text = "–" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."


def _rows(outcome: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    prompts = outcome["prompts"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in prompts["dropped_by_reason"].items())
    yield "prompts", f"{prompts['read']} read, {prompts['kept']} kept, {prompts['dropped']} dropped"
    if reasons:
        yield "dropped", reasons
    yield "batches", f"{outcome['batches']} of {outcome['batch_size']}"
    train = outcome.get("train")
    if train is None:
        return
    yield "training", f"{train['steps']} steps" + ("" if train["steps_run_now"] else " (none of them new)")
    for kind, field in (("sampled", "accuracy"), ("greedy", "greedy")):
        gain = train["gain"][kind]
        yield f"accuracy, {kind}", (f"{train[f'{field}_before']:.1%} → {train[f'{field}_after']:.1%}  "
                                    f"({100 * gain['difference']:+.1f} points, 95% interval {100 * gain['low']:+.1f} "
                                    f"to {100 * gain['high']:+.1f})")
    yield "checkpoint", train["checkpoint"]
