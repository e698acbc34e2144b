"""verl's settings as hydra overrides: how a value is spelled, and which keys belong to SAERL.

A manifest is an order of prompts. verl keeps that order only under certain settings (`settings._order_settings`), so
a user's own overrides must not touch those: they are refused by name rather than silently outvoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from saerl_core.errors import ConfigError

_SPELLING = re.compile(r"(?P<sign>\+{0,2}|~)(?P<key>[A-Za-z_][\w.]*)(?:=(?P<value>.*))?", re.DOTALL)

_ORDER = "it decides which prompts share a batch and in which order they come, which is the manifest's to say"
_RESUME = "SAERL decides where a job resumes"
_RESERVED: dict[str, str] = {
    "data.train_files": _ORDER,
    "data.train_batch_size": _ORDER + " (schedule.batch_size)",
    "data.gen_batch_size": _ORDER,
    "data.shuffle": _ORDER,
    "data.sampler": _ORDER,
    "data.custom_cls": _ORDER,
    "data.filter_overlong_prompts": _ORDER,
    "data.train_max_samples": _ORDER,
    "data.prompt_key": _ORDER,
    "data.truncation": "a truncated prompt is not the manifest's prompt",
    "actor_rollout_ref.actor.ppo_mini_batch_size": _ORDER,
    "algorithm.filter_groups": _ORDER,
    "trainer.use_v1": _ORDER,
    "trainer.v1": _ORDER,
    "trainer.total_epochs": _ORDER + " (schedule.epochs)",
    "trainer.total_training_steps": _ORDER + " (schedule.steps)",
    "trainer.default_local_dir": _RESUME,
    "trainer.default_hdfs_dir": _RESUME,
    "trainer.resume_mode": _RESUME,
    "trainer.resume_from_path": _RESUME,
    "trainer.val_only": "the job is there to train",
    "trainer.save_freq": "set train.save_every",
    "trainer.test_freq": "set train.test_every",
    "trainer.device": "set train.engine",
    "trainer.n_gpus_per_node": "set train.gpus",
    "trainer.nnodes": "set train.nodes",
    "actor_rollout_ref.actor.checkpoint": "the last checkpoint must hold a model that transformers can load",
    "actor_rollout_ref.rollout.n": "set train.rollouts",
    "actor_rollout_ref.model.path": "set policy.model",
    "actor_rollout_ref.model.trust_remote_code": "set policy.trust_remote_code",
    "data.trust_remote_code": "set policy.trust_remote_code",
    "reward.custom_reward_function": "set policy.verifier: evaluation and training must judge alike",
    "reward.reward_model": "set policy.verifier: the verifier gives the reward",
    "skip": _ORDER,
    "hydra": "SAERL runs the job in a folder of its own",
}


def spell(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings → hydra overrides. A key may begin with `+`, hydra's sign for a key that the schema does not have."""
    return tuple(f"{key}={_spell_value(value)}" for key, value in settings.items())


def check_user_overrides(overrides: Iterable[str]) -> tuple[str, ...]:
    """The user's overrides, if none of them touches what SAERL must decide.

    Raises:
        ConfigError: names the override and the reason.
    """
    accepted = tuple(overrides)
    for override in accepted:
        match = _SPELLING.fullmatch(override.strip())
        if match is None or (match["value"] is None and match["sign"] != "~"):
            raise ConfigError(f"train.overrides: {override!r} is not a hydra override such as `trainer.key=value`")
        for reserved, reason in _RESERVED.items():
            if _touches(match["key"], reserved):
                raise ConfigError(f"train.overrides: {override!r} is refused: {reason}")
        if match["key"] == "trainer.logger" and "file" not in (match["value"] or ""):
            raise ConfigError(f"train.overrides: {override!r} is refused: SAERL reads verl's `file` log; add it")
    return accepted


def key_of(override: str) -> str:
    """The key of a hydra override, without its sign."""
    return override.partition("=")[0].lstrip("+~")


def _touches(key: str, reserved: str) -> bool:
    return key == reserved or key.startswith(reserved + ".") or reserved.startswith(key + ".")


def _spell_value(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _quote(value)
        case list() | tuple():
            return "[" + ",".join(map(_spell_value, value)) + "]"
        case dict():
            return "{" + ",".join(f"{key}:{_spell_value(item)}" for key, item in value.items()) + "}"
        case _:
            raise TypeError(f"no hydra spelling for {type(value).__name__}")


def _quote(text: str) -> str:
    """Plain words stay bare; anything else is quoted, as hydra's grammar wants it."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    # Only quotes need an escape, and backslashes right before a quote.
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    escaped = re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped)
    return f"'{escaped}'"
