"""Notice that a config's data or SAE changed, by content, and tell the Prefect server: one event per real change.

A look (sizes and times) is cheap and only says where to look closer; the hash decides. So a file that was merely
touched is no change, and one that was changed back before anybody looked is none either. The hashes last told are kept
in the workspace: what changes while nobody watches is told at the next start. A burst of changes is told at its first
pause, and what follows within `HOLD_SECONDS` is told as one at the end of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flows.events import Kind, ServerError, emit
from saerl_core import revisions, sae_registry, sealed
from saerl_core.config import RunConfig
from saerl_core.errors import DataError
from saerl_core.revisions import Look

LOOK_SECONDS = 0.25
"""Between two looks at local files."""
HUB_SECONDS = 60.0
"""Between two looks at the hub."""
SETTLE_SECONDS = 0.5
"""A source is hashed when nothing was written to it for so long: half a file is no content."""
HOLD_SECONDS = 30.0
"""After a change was told, further ones are gathered for so long."""

RETRY_SECONDS = 10.0
"""After a source could not be read, or a change not be told."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Something that a config reads."""

    kind: Kind
    name: str
    """as the config spells it"""
    base: Path


@dataclass
class Seen:
    """What a watcher knows of a source."""

    sha256: str | None = None
    """content last told; None before the first look"""
    look: Look | None = None
    """look at that content"""
    pending: Look | None = None
    """a look that differs from it"""
    pending_since: float = 0.0
    looked_at: float = field(default=float("-inf"))
    told_at: float = field(default=float("-inf"))


@dataclass(frozen=True)
class Change:
    """A change of content that is ready to be told."""

    source: Source
    before: str
    after: str


def sources_of(config: RunConfig) -> list[Source]:
    """What a curation reads and somebody may change: prompts, evaluation sets, SAE. One of a registry never changes."""
    base = Path(config.base)
    data = [config.data, *config.data.evaluations().values()]
    names = [f"{source.path}@{source.revision}" if source.revision else source.path for source in data]
    found = [Source("data", name, base) for name in dict.fromkeys(names)]
    if not sae_registry.is_registered(config.features.sae):
        found.append(Source("sae", config.features.sae, base))
    return found


def watch(config: RunConfig, *, once: bool = False, told: Callable[[Change], None] | None = None) -> None:
    """Watch the sources of a config, until interrupted.

    Args:
        config: Its `name` is the target that events are for.
        once: Look once, tell what changed since the last time, and return.
        told: Called after every event.

    Raises:
        DataError: with `once`, a source cannot be read or the server takes no event. Otherwise it is tried again.
    """
    state = state_file(config)
    seen = read_state(state, sources_of(config))
    while True:
        for source, known in seen.items():
            try:
                change = step(source, known, time.monotonic(), settle=0 if once else SETTLE_SECONDS)
                if change is not None:
                    emit(source.kind, "changed", config.name, path=source.name,
                         payload={"before": change.before, "after": change.after})
                    note_told(known, change, time.monotonic())
                    if told is not None:
                        told(change)
            except (OSError, ServerError) as error:
                if once:
                    raise DataError(f"{source.name}: {error}") from error
                logger.warning("%s: %s; trying again in %.0f s", source.name, error, RETRY_SECONDS)
                known.looked_at = time.monotonic() + RETRY_SECONDS
        write_state(state, seen)
        if once:
            return
        time.sleep(LOOK_SECONDS)


def step(source: Source, known: Seen, now: float, settle: float = SETTLE_SECONDS) -> Change | None:
    """Look at a source once.

    Args:
        source: Where to look.
        known: What is known of it; changed here, but for what was told.
        now: Seconds on a clock that only goes forward.
        settle: Seconds without a write before it is hashed.

    Returns:
        A change that should be told now, if there is one. `note_told` then notes that it was.

    Raises:
        OSError: the source cannot be read.
    """
    if now - known.looked_at < (HUB_SECONDS if revisions.is_hub(source.name) else LOOK_SECONDS):
        return None
    known.looked_at = now
    look = revisions.look(source.name, source.base)
    if look is None or look == known.look:
        known.pending = None
        return None
    if look != known.pending:
        known.pending, known.pending_since = look, now
    if now - known.pending_since < settle or now - known.told_at < HOLD_SECONDS:
        return None
    sha256 = revisions.content_hash(source.name, source.base)
    if revisions.look(source.name, source.base) != look:
        return None  # written to while it was read
    if known.sha256 in (None, sha256):
        known.sha256, known.look, known.pending = sha256, look, None
        return None
    return Change(source, str(known.sha256), sha256)


def note_told(known: Seen, change: Change, now: float) -> None:
    """Note that a change was told."""
    known.sha256, known.look, known.pending, known.told_at = change.after, known.pending, None, now


def state_file(config: RunConfig) -> Path:
    """Where a target's watcher remembers what it told."""
    return config.root / "watch" / f"{config.name}.json"


def read_state(path: Path, watched: list[Source]) -> dict[Source, Seen]:
    """What was told of each source; nothing, where the file is missing or damaged."""
    try:
        kept = _State.model_validate(sealed.read(path)).sources
    except FileNotFoundError:
        kept = {}
    except (OSError, ValueError) as error:  # pydantic's errors are among the latter
        kept = {}
        logger.warning("%s: %s; begun anew: a change while nobody watched is left to the next scheduled run", path,
                       " ".join(str(error).split()))
    return {source: Seen(**dict(kept.get(_key(source), ()))) for source in watched}


def write_state(path: Path, seen: dict[Source, Seen]) -> None:
    """Keep it, if it differs from what is kept."""
    sources = {_key(source): _Kept(sha256=known.sha256, look=known.look) for source, known in seen.items()}
    state = _State(version=1, sources=sources).model_dump()
    try:
        if sealed.read(path) == state:
            return
    except (OSError, ValueError):
        logger.debug("%s is written anew", path)
    sealed.write(path, state)


class _Kept(BaseModel):
    """What is kept of a source."""

    model_config = ConfigDict(extra="forbid")

    sha256: str | None
    look: Look | None


class _State(BaseModel):
    """The file in which it is kept."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    sources: dict[str, _Kept]


def _key(source: Source) -> str:
    return f"{source.kind} {source.name}"
