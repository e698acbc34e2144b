"""Progress of long work: a progress artifact in the UI, and whoever listens in this process (the terminal's bar)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

_SECONDS_BETWEEN_UPDATES = 2.0

Listener = Callable[[str, int, int, str], None]
"""Called with stage, done, total and a note."""

logger = logging.getLogger(__name__)
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of all progress in this process while the context lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(stage: str, done: int, total: int, note: str = "") -> None:
    """Tell the listeners of this process."""
    for listener in _listeners:
        listener(stage, done, total, note)


class Progress:
    """Progress of one stage. Call it with (done, total); the UI hears of it every few seconds."""

    def __init__(self, stage: str, unit: str) -> None:
        self._stage, self._unit = stage, unit
        self._key = f"{stage.replace(' ', '-')}-progress"
        self._artifact: UUID | None = None
        self._told = 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        tell(self._stage, done, total, note or self._unit)
        now = time.monotonic()
        if done < total and now - self._told < _SECONDS_BETWEEN_UPDATES:
            return
        self._told = now
        percent = 100 * done / max(total, 1)
        try:
            if self._artifact is None:
                created = create_progress_artifact(progress=percent, key=self._key,
                                                   description=f"{self._stage}: {self._unit}")
                assert isinstance(created, UUID)  # a coroutine only where an event loop runs: never in a stage
                self._artifact = created
            else:
                update_progress_artifact(self._artifact, progress=percent, description=f"{self._stage}: {note}" if note
                                         else None)
        except Exception as error:  # a server that is away for a moment must not stop hours of work
            logger.warning("progress of %s not shown: %s", self._stage, error)
