"""Two runs that need the same rows: the second finds what the first has read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.curate import curate
from saerl_core import feature_store, gc
from saerl_core.config import RunConfig
from tasks.extract import extract_shard, load_messages
from tasks.inputs import resolve_inputs
from tasks.read import read


@pytest.mark.parametrize("second_start", [0, 32])
def test_rows_that_two_runs_need_at_once_are_read_once(world: Callable[..., RunConfig], forward_passes: list[int],
                                                       second_start: int) -> None:
    config = world()
    inputs = resolve_inputs(config)
    table = read.fn(config.root, inputs.data, {}, inputs.policy, Path(config.base), config.data, config.hygiene,
                    config.policy, inputs.data_hash, {}, inputs.policy_hash, inputs.verifier)

    def extract(start: int) -> int:
        return extract_shard.fn(inputs, config.features, table, start, 1, 1, 64, f"from-{start}", "store").read

    with ThreadPoolExecutor(2) as pool:
        read_by_each = list(pool.map(extract, [0, second_start]))
    assert sum(read_by_each) == sum(forward_passes) == 64 + second_start
    keys = [feature_store.feature_key(chat) for chat in load_messages(table)[: 64 + second_start]]
    assert len(feature_store.find_rows(inputs.store, keys)) == len(set(keys)) == 64 + second_start


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
