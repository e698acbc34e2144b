"""Locks between processes that share a workspace. The kernel lets go of them when their holder dies, however it dies.

They are advisory locks on files (`flock`): on a network file system they need one that passes them on (NFSv4 does).
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

IN_USE = ".in-use"
"""In a workspace: held shared by every run, and alone by whoever removes things."""

_POLL_SECONDS = 0.05


class BusyError(Exception):
    """Somebody else holds the lock."""


@contextmanager
def exclusive(path: Path, *, wait: bool = True, given_up: threading.Event | None = None) -> Iterator[None]:
    """Hold a lock file alone.

    Args:
        path: The lock file; made where it is missing, and left there.
        wait: Wait for the other holders.
        given_up: Set when nobody needs the lock any more. A thread that waits in the kernel would not hear of Ctrl-C.

    Raises:
        BusyError: somebody else holds it, and `wait` is off, or the wait was given up.
    """
    if given_up is None or not wait:
        with _locked(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)):
            yield
        return
    with ExitStack() as held:
        # who comes next waits here, or a holder that comes back at once would be before all who only look now and then
        with _polled(path.with_name(f"{path.name}.next"), given_up):
            held.enter_context(_polled(path, given_up))
        yield


@contextmanager
def _polled(path: Path, given_up: threading.Event) -> Iterator[None]:
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
                break
            except BusyError:
                if given_up.wait(_POLL_SECONDS):
                    raise
        yield


@contextmanager
def in_use(workspace: Path) -> Iterator[None]:
    """Hold a workspace together with others that use it, so that `saerl gc --delete` keeps away."""
    with _locked(workspace / IN_USE, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(path: Path, mode: int) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, mode)
        except BlockingIOError as error:
            raise BusyError(str(path)) from error
        yield
