"""Shards side by side, of one run or of two that need the same rows: what is read once is not read again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.curate import curate
from saerl_core import backbone, feature_store, gc
from saerl_core.artifact import ArtifactRef
from saerl_core.config import RunConfig
from tasks import extract
from tasks.extract import extract_shard, load_messages, plan_shards
from tasks.inputs import resolve_inputs
from tasks.read import load_findings, load_table, read, seal_table
from tests.flows.conftest import make_config


@pytest.fixture(autouse=True)
def _not_given_up() -> None:
    """As a run begins; these tests call what is inside one."""
    extract._GIVEN_UP.clear()


def read_prompts(config: RunConfig) -> tuple[Any, ArtifactRef]:
    inputs = resolve_inputs(config)
    return inputs, read.fn(config.root, inputs.data, {}, inputs.policy, Path(config.base), config.data, config.hygiene,
                           config.policy, inputs.data_hash, {}, inputs.policy_hash, inputs.verifier)


@pytest.mark.parametrize("second_start", [0, 32])
def test_rows_that_two_runs_need_at_once_are_read_once(world: Callable[..., RunConfig], forward_passes: list[int],
                                                       second_start: int) -> None:
    config = world()
    inputs, table = read_prompts(config)

    def extract_from(start: int) -> int:
        return extract_shard.fn(inputs, config.features, table, start, 1, 1, 64, f"from-{start}", "store").read

    with ThreadPoolExecutor(2) as pool:
        read_by_each = list(pool.map(extract_from, [0, second_start]))
    assert sum(read_by_each) == sum(forward_passes) == 64 + second_start
    keys = [feature_store.feature_key(chat) for chat in load_messages(table)[: 64 + second_start]]
    assert len(feature_store.find_rows(inputs.store, keys)) == len(set(keys)) == 64 + second_start


def test_a_prompt_that_occurs_twice_is_read_once_with_the_same_bytes_whichever_shard_comes_first(
    tmp_path: Path, forward_passes: list[int]
) -> None:
    kept = []
    for order in (1, -1):
        (tmp_path / str(order)).mkdir()
        config = make_config(tmp_path / str(order))
        inputs, once = read_prompts(config)
        rows = load_table(once)
        table = seal_table(config.root, "read", pl.concat([rows[:64], rows[20:50], rows[64:98]]), load_findings(once))
        shards = plan_shards(table, 64)
        for shard in shards[::order]:
            extract_shard.fn(inputs, config.features, table, shard.start, shard.number, shard.total,
                             shard.stop - shard.start, shard.content, "store")
        assert sum(forward_passes) == 98
        forward_passes.clear()
        kept.append(sorted(segment.name for segment in inputs.store.glob("*.safetensors")))
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2


def test_the_next_shard_is_tokenised_while_one_is_on_the_device(world: Callable[..., RunConfig],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    tokenise, forward = extract._tokenise, backbone.residual_stream
    tokenised, two_are_ready = [], threading.Event()

    def counted(*args: Any) -> Any:
        tokenised.append(tokenise(*args))
        if len(tokenised) == 2:
            two_are_ready.set()
        return tokenised[-1]

    def after_two(*args: Any) -> Any:
        assert two_are_ready.wait(60), "nothing is tokenised while the device is busy"
        return forward(*args)

    monkeypatch.setattr(extract, "_tokenise", counted)
    monkeypatch.setattr(backbone, "residual_stream", after_two)
    assert curate(world()).prompts_read_by_model == 160


def test_a_reader_is_not_taken_for_another_that_lay_in_the_same_place(
    world: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world()
    inputs, _ = read_prompts(config)
    loaded: list[Path] = []
    monkeypatch.setattr(extract, "load_reader", lambda model, *_: loaded.append(model))
    for encoder_hash in ("one", "one", "other"):
        extract.reader(inputs.model, inputs.sae, inputs.layer, config.features.model_dump_json(), inputs.model_hash,
                       encoder_hash)
    assert len(loaded) == 2
    extract.reader.cache_clear()


def test_what_is_published_names_the_segments_that_are_there_by_then(world: Callable[..., RunConfig]) -> None:
    config = world()
    inputs, table = read_prompts(config)
    for shard in plan_shards(table, 64):
        extract_shard.fn(inputs, config.features, table, shard.start, shard.number, shard.total,
                         shard.stop - shard.start, shard.content, "store")
    with extract.kept_segments(inputs.store, [table]) as before:
        assert len(before) == 3
    feature_store.discard(feature_store.compact(inputs.store))
    with extract.kept_segments(inputs.store, [table]) as after:
        assert after == [segment for segment in inputs.store.iterdir() if segment.suffix == ".safetensors"]
        assert len(after) == 1


def test_many_small_segments_become_one_and_no_row_is_read_again(world: Callable[..., RunConfig],
                                                                 forward_passes: list[int],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.extract._MANY_SEGMENTS", 2)
    first = curate(world())
    (segment,) = first.inputs.store.glob("*.safetensors")
    assert sum(forward_passes) == first.prompts_read_by_model + first.damaged_copies_read
    forward_passes.clear()
    again = curate(world(clusters={"k": 5}))
    assert again.id != first.id
    assert not forward_passes
    assert segment not in {item.path for item in gc.find(world().root).garbage}
