"""Running stages inside a flow: each is a Prefect task run; whoever listens hears whether it ran or was cached."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prefect import Task
from prefect.logging import get_run_logger
from pydantic import BaseModel

from saerl_core.artifact import ArtifactRef
from saerl_core.config import RunConfig
from tasks.caching import keep_results

R = TypeVar("R")


class StageRecord(BaseModel):
    """One stage of a run, as it went."""

    stage: str
    cached: bool
    seconds: float
    note: str = ""
    artifacts: list[str] = []
    """what it gave, by path"""


Listener = Callable[[StageRecord], None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every stage that ends in this process while the context lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def record(stage: str, *, cached: bool, seconds: float, note: str = "",
           artifacts: Iterable[ArtifactRef] = ()) -> StageRecord:
    """Note a stage's end in the run's log and tell the listeners."""
    entry = StageRecord(stage=stage, cached=cached, seconds=round(seconds, 2), note=note,
                        artifacts=[str(artifact.path) for artifact in artifacts])
    how = "cached" if cached else f"ran, {seconds:.1f} s"
    get_run_logger().info("%s: %s%s", stage, how, f" · {note}" if note else "")
    for listener in _listeners:
        listener(entry)
    return entry


def run_stage(config: RunConfig, stage: Task[..., R], *args: Any, size: str = "",
              describe: Callable[[R], str] | None = None) -> tuple[R, StageRecord]:
    """Run a stage as a task of the current flow, its result kept in the run's workspace.

    Args:
        config: Names the workspace.
        stage: The task.
        *args: Its arguments.
        size: How much it has to do, for the task run's name: `2,574 prompts`.
        describe: Result → a few words for the log line.

    Returns:
        The result, and the record of how it came about.
    """
    started = time.monotonic()
    named = stage.with_options(task_run_name=f"{stage.name} · {size}") if size else stage
    state: Any = keep_results(named, config.root)(*args, return_state=True)
    result: Any = state.result()
    note = describe(result) if describe else ""
    return result, record(stage.name, cached=state.name == "Cached", seconds=time.monotonic() - started, note=note,
                          artifacts=[result] if isinstance(result, ArtifactRef) else ())
