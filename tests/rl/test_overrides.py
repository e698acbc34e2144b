"""Hydra overrides: every value survives hydra's own parser, and what belongs to SAERL cannot be overridden."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_core.errors import ConfigError
from saerl_core.rl.overrides import check_user_overrides, spell

hydra_parser = pytest.importorskip("hydra.core.override_parser.overrides_parser")

_texts = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="$"), max_size=20)
_scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | _texts


@given(_scalars | st.lists(_scalars, max_size=3))
def test_a_value_comes_out_of_hydra_as_it_went_in(value: Any) -> None:
    (override,) = spell({"a.b": value})
    parsed = hydra_parser.OverridesParser.create().parse_override(override)
    assert _plain(parsed.value()) == value


@pytest.mark.parametrize(
    "path", ["/a b/c=d,e.parquet", "/it's/here", "C:\\temp\\", "/x/{y}/[z]", "null", "/ä/日本", "a:b", "1e-3"]
)
def test_awkward_paths_survive(path: str) -> None:
    (override,) = spell({"a": path})
    assert _plain(hydra_parser.OverridesParser.create().parse_override(override).value()) == path


@pytest.mark.parametrize(
    "override",
    [
        "data.shuffle=True",
        "+data.shuffle=True",
        "++data.sampler.class_name=Mine",
        "~data.shuffle",
        "data={shuffle:true}",
        "data.train_batch_size=64",
        "data.gen_batch_size=1",
        "data.filter_overlong_prompts=True",
        "data.train_max_samples=10",
        "data.custom_cls.path=mine.py",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "algorithm.filter_groups.enable=True",
        "trainer.v1.trainer_mode=separate_async",
        "trainer.v1.sampler.custom_sampler.path=null",
        "trainer.total_epochs=2",
        "trainer.total_training_steps=7",
        "trainer.resume_mode=disable",
        "trainer.default_local_dir=/tmp/x",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model]",
        "trainer.logger=[wandb]",
        "hydra.run.dir=/tmp",
    ],
)
def test_an_override_of_what_decides_the_order_is_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError, match="refused") as caught:
        check_user_overrides([override])
    assert override in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["--config-path=/tmp", "no equals", "data.seed", "actor@x.y=dp_actor", ""])
def test_what_is_no_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="not a hydra override"):
        check_user_overrides([override])


def test_other_settings_are_the_users() -> None:
    wanted = (
        "actor_rollout_ref.actor.optim.weight_decay=0.1",
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.8",
        "trainer.logger=[console,file,wandb]",
        "+ray_kwargs.ray_init.address=auto",
        "data.seed=3",
    )
    assert check_user_overrides(wanted) == wanted


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.text if hasattr(value, "text") else value
