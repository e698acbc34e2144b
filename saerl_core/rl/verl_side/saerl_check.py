"""A dry run of a verl job: everything that can be wrong with it short of running it, on any machine.

    python saerl_check.py job|config OVERRIDE...

Composes verl's real configuration, runs verl's own checks, builds its configuration classes and loads the verifier.
`job` goes on to load tokenizer, data set and sampler, and lists which prompt ids every step will get; `config` stops
before anything that needs the model or the data. No Ray, no GPU, no rollout engine: a GPU job can be checked on a
laptop.

The last line on stdout is one JSON object: `{"ok": true, ...}` or `{"ok": false, "error": "..."}`.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
from typing import Any


def check_config(config: Any) -> None:
    """verl's own validation, and its configuration classes."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    use_reference = need_reference_policy(config)
    validate_config(config=config, use_reference_policy=use_reference, use_critic=need_critic(config))
    parts = [config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.algorithm]
    for part in (*parts, *([config.actor_rollout_ref.ref] if use_reference else [])):
        omega_conf_to_dataclass(part)


def check_reward(config: Any) -> None:
    """The run's verifier, in the interpreter that will ask it."""
    from saerl_reward import configured_verifier
    from verl.trainer.ppo.reward import get_custom_reward_fn

    settings = config.reward.custom_reward_function.reward_kwargs
    configured_verifier(settings.verifier, settings.identity)
    compute_score: Any = get_custom_reward_fn(config)
    if settings.verifier in ("exact", "math"):
        right = compute_score(data_source="check", solution_str="\\boxed{1}", ground_truth="1", extra_info={})
        if right != 1.0:
            raise ValueError(f"policy.verifier: {settings.verifier} does not accept a right answer")


def check_job(config: Any) -> dict[str, Any]:
    """Tokenizer, data and order, as verl's trainer builds them."""
    from torchdata.stateful_dataloader import StatefulDataLoader
    from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
    from verl.utils import normalize_token_ids
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.dataset.rl_dataset import collate_fn

    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    tokenizer = model.tokenizer
    _refuse_remote_code(config, model)
    if tokenizer.chat_template is None:
        raise ValueError(f"{config.actor_rollout_ref.model.path}: the tokenizer has no chat template")

    data = config.data
    train: Any = create_rl_dataset(
        data.train_files, data, tokenizer, model.processor, is_train=True, max_samples=data.train_max_samples
    )
    heldout: Any = create_rl_dataset(
        data.val_files, data, tokenizer, model.processor, is_train=False, max_samples=data.val_max_samples
    )
    loader = StatefulDataLoader(
        dataset=train,
        batch_size=data.get("gen_batch_size") or data.train_batch_size,
        num_workers=data.dataloader_num_workers,
        drop_last=True,
        collate_fn=collate_fn,
        sampler=create_rl_sampler(data, train),
    )
    batches: list[list[str]] = []
    longest = 0
    for batch in loader:
        batches.append([str(info["id"]) for info in batch["extra_info"]])
        for prompt_id, chat in zip(batches[-1], batch["raw_prompt"], strict=True):
            ids = normalize_token_ids(
                tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, tokenize=True)
            )
            if len(ids) > data.max_prompt_length:
                raise ValueError(
                    f"prompt {prompt_id!r} has {len(ids)} tokens, policy.max_prompt_tokens is {data.max_prompt_length}"
                )
            longest = max(longest, len(ids))
    return {"batches": batches, "rows": len(train), "heldout_rows": len(heldout), "longest_prompt": longest}


def _refuse_remote_code(config: Any, model: Any) -> None:
    """verl's reward worker reads the tokenizer with trust_remote_code=True whatever the configuration says."""
    if config.actor_rollout_ref.model.trust_remote_code:
        return
    brought = {
        "model": getattr(model.hf_config, "auto_map", None),
        "tokenizer": getattr(model.tokenizer, "init_kwargs", {}).get("auto_map"),
    }
    for part, code in brought.items():
        if code:
            raise ValueError(
                f"the {part} of {config.actor_rollout_ref.model.path} brings code of its own, which verl would run; "
                "if you trust it, set policy.trust_remote_code: true"
            )


def _refuse_incompatible_trl() -> None:
    if importlib.util.find_spec("trl") is None:
        return
    trl = importlib.import_module("trl")
    if not hasattr(trl, "AutoModelForCausalLMWithValueHead"):
        raise ValueError(
            f"trl {trl.__version__} is installed beside verl, which imports a class that it no longer has: uninstall it"
        )


def main(mode: str, overrides: list[str]) -> dict[str, Any]:
    """What the check found, as one JSON-able object."""
    import verl
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    _refuse_incompatible_trl()
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        config = compose(config_name="ppo_trainer", overrides=overrides)
    OmegaConf.resolve(config)
    check_config(config)
    check_reward(config)
    findings = check_job(config) if mode == "job" else {}
    return {"ok": True, "verl": verl.__version__, **findings}


if __name__ == "__main__":
    gc.disable()  # of seven CPU-seconds, nearly all imports, the collector takes one, and a tidy end another
    try:
        report = main(sys.argv[1], sys.argv[2:])
    except Exception as error:  # any failure of the dry run is its result
        message = " ".join(str(error).split()) or "no message"
        report = {"ok": False, "error": f"{type(error).__name__}: {message}"}
    sys.stdout.write("\n" + json.dumps(report) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if report["ok"] else 1)
