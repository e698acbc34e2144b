"""The watcher on a clock of the test's own, and its events on a real Prefect server."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import watch
from flows.watch import Change, Seen, Source
from saerl_core.config import RunConfig
from saerl_core.errors import DataError, ServerError
from tests.damage import cut, flip
from tests.flows.conftest import make_config, toy_rows, write_rows


class Clock:
    """Looks at a source four times a second."""

    def __init__(self, source: Source, seen: Seen | None = None) -> None:
        self.source, self.seen, self.now = source, seen or Seen(), 1000.0
        self.told: list[Change] = []

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / watch.LOOK_SECONDS)):
            self.now += watch.LOOK_SECONDS
            change = watch.step(self.source, self.seen, self.now)
            if change is not None:
                watch.note_told(self.seen, change, self.now)
                self.told.append(change)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """A file `rows.jsonl` that was looked at."""
    (tmp_path / "rows.jsonl").write_text("0\n")
    clock = Clock(Source("data", "rows.jsonl", tmp_path))
    clock.run(2)
    return clock


def change(clock: Clock, text: str) -> None:
    (clock.source.base / "rows.jsonl").write_text(text)


def test_the_first_look_tells_nothing(clock: Clock) -> None:
    assert clock.told == []


def test_a_change_is_told_once_with_both_hashes_soon_after_it(clock: Clock) -> None:
    before = clock.seen.sha256
    change(clock, "1\n")
    clock.run(1)
    assert [(told.before, told.after) for told in clock.told] == [(before, clock.seen.sha256)]
    clock.run(100)
    assert len(clock.told) == 1


def test_a_touched_or_rewritten_file_is_no_change(clock: Clock) -> None:
    path = clock.source.base / "rows.jsonl"
    for _ in range(3):
        os.utime(path)
        clock.run(2)
        change(clock, "0\n")
        clock.run(2)
    assert clock.told == []


def test_ten_changes_in_a_burst_are_told_at_most_twice_and_the_last_content_is_told(clock: Clock) -> None:
    for number in range(10):
        change(clock, f"burst {number}\n")
        clock.run(1.5)
    clock.run(watch.HOLD_SECONDS + 1)
    assert 1 <= len(clock.told) <= 2
    assert clock.told[-1].after == watch.revisions.content_hash("rows.jsonl", clock.source.base)


def test_a_file_that_is_still_being_written_is_not_told(clock: Clock) -> None:
    for number in range(20):
        change(clock, "x" * (number + 1))
        clock.run(watch.LOOK_SECONDS)
    assert clock.told == []
    clock.run(1)
    assert len(clock.told) == 1


def test_a_file_that_goes_and_comes_back_the_same_is_no_change(clock: Clock) -> None:
    path = clock.source.base / "rows.jsonl"
    path.rename(path.with_suffix(".away"))
    clock.run(5)
    path.with_suffix(".away").rename(path)
    clock.run(5)
    assert clock.told == []


def test_what_changed_while_nobody_watched_is_told_at_the_next_start(clock: Clock, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    watch.write_state(state, {clock.source: clock.seen})
    seen = watch.read_state(state, [clock.source])
    unchanged = Clock(clock.source, seen[clock.source])
    unchanged.run(2)
    assert unchanged.told == []
    change(clock, "1\n")
    restarted = Clock(clock.source, watch.read_state(state, [clock.source])[clock.source])
    restarted.run(1)
    assert len(restarted.told) == 1


def state(sources: Any, version: Any = 1, **more: Any) -> str:
    return json.dumps({"version": version, "sources": sources, **more})


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "[" * 100_000, "{}", '{"data rows.jsonl": {"sha256": "0", "look": null}}', state([]),
    state({}, version=2), state({}, version="x"), state({}, more=1), state({"data rows.jsonl": {"bogus": 1}}),
    state({"data rows.jsonl": {"sha256": 5, "look": None}}), state({"data rows.jsonl": {"sha256": "0", "look": "x"}}),
    state({"data rows.jsonl": {"sha256": "0", "look": [[{}]]}}), state({}, sha256="0"), state({}, sha256=1)])
def test_a_state_file_of_another_kind_is_begun_anew_and_said_so(clock: Clock, tmp_path: Path, text: str,
                                                                caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    assert watch.read_state(path, [clock.source]) == {clock.source: Seen()}
    (line,) = caplog.messages
    assert "state.json: " in line
    assert "begun anew" in line
    assert "\n" not in line


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_state_that_was_damaged_tells_nothing_that_is_not_so(clock: Clock, tmp_path: Path,
                                                               damage: Callable[[Path], None]) -> None:
    path = tmp_path / "state.json"
    watch.write_state(path, {clock.source: clock.seen})
    damage(path)
    again = Clock(clock.source, watch.read_state(path, [clock.source])[clock.source])
    os.utime(clock.source.base / "rows.jsonl")
    again.run(2)
    assert again.told == []
    watch.write_state(path, {clock.source: again.seen})
    kept = watch.read_state(path, [clock.source])[clock.source]
    assert (kept.sha256, kept.look) == (again.seen.sha256, again.seen.look)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 200)), max_size=12))
def test_whatever_happens_the_last_content_told_is_the_last_content_there(
        tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, int]]) -> None:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "rows.jsonl").write_text("start\n")
    clock = Clock(Source("data", "rows.jsonl", folder))
    clock.run(1)
    for text, looks in writes:
        change(clock, text)
        clock.run(looks * watch.LOOK_SECONDS)
    clock.run(2 * watch.HOLD_SECONDS)
    assert clock.seen.sha256 == watch.revisions.content_hash("rows.jsonl", folder)
    assert all(told.before != told.after for told in clock.told)
    assert [told.after for told in clock.told[:-1]] == [told.before for told in clock.told[1:]]


def events(resource: str) -> list[dict[str, Any]]:
    """Events on the test's server, the oldest first."""
    from prefect.client.orchestration import get_client

    body = {"filter": {"resource": {"id": [resource]}, "order": "ASC"}}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # the server writes them down in batches
        with get_client(sync_client=True) as client:
            found = client.request("POST", "/events/filter", json=body).json()["events"]  # type: ignore[arg-type]
        if found:
            return found
        time.sleep(0.2)
    return []


def test_a_watch_tells_the_server_what_changed_and_for_whom(world: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = world().model_copy(update={"name": "watched"})
    watch.watch(config, once=True)
    write_rows(tmp_path / "prompts.jsonl", toy_rows(161))
    told: list[Change] = []
    for _ in range(3):
        watch.watch(config, once=True, told=told.append)
    assert len(told) == 1
    (event,) = events("saerl.data.watched")
    assert event["event"] == "saerl.data.changed"
    assert event["resource"]["saerl.target"] == "watched"
    assert event["payload"] == {"before": told[0].before, "after": told[0].after}


def test_an_event_that_the_server_did_not_take_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path)
    watch.watch(config, once=True)
    write_rows(tmp_path / "prompts.jsonl", toy_rows(161))

    def refuse(*_: object, **__: object) -> None:
        raise ServerError("away")

    with monkeypatch.context() as patch:
        patch.setattr(watch, "emit", refuse)
        with pytest.raises(DataError, match="away"):
            watch.watch(config, once=True)
    told: list[Change] = []
    watch.watch(config, once=True, told=told.append)
    assert len(told) == 1


def test_the_sae_and_every_evaluation_set_are_watched_too(world: Callable[..., RunConfig]) -> None:
    config = world(data={"path": "prompts.jsonl", "heldout": {"path": "exam.jsonl"}, "decontaminate": [
        {"path": "hub:owner/exam", "revision": "v2"}, {"path": "prompts.jsonl"}]})
    assert [(source.kind, source.name) for source in watch.sources_of(config)] == [
        ("data", "prompts.jsonl"), ("data", "exam.jsonl"), ("data", "hub:owner/exam@v2"), ("sae", "saerl:toy/sae")]
