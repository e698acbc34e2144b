"""`saerl check`: all that can be told wrong in seconds, and what the run will cost. Starts and writes nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.filesize import decimal

from saerl_core import controls, disk, hygiene, models, prompts, sae_registry, sources
from saerl_core.config import RunConfig, SourceConfig
from saerl_core.device import choose_device
from saerl_core.errors import ConfigError
from saerl_core.hygiene import EvaluationSet
from saerl_core.manifest import verify_manifest
from saerl_core.models import ModelSpec
from saerl_core.rl import verifiers
from saerl_core.rl.check import check_config_only, draft_overrides
from saerl_core.sae_spec import SaeSpec, choose_layer, encoder_hash, encoder_spec, read_spec
from saerl_core.schedule import batch_count, check_batches
from saerl_core.token_estimate import token_counts

_SAMPLE_ROWS = 1000
_COUNTED_ROWS = 3000
"""Up to so many prompts, all are tokenised."""


def check_inputs(config: RunConfig, *, train: bool) -> None:
    """What `saerl run` checks before anything starts: files, columns of the first rows, SAE against model.

    Raises:
        SaerlError: one line: what is wrong, where, and what to do.
    """
    verifiers.load(config.policy, Path(config.base))
    _check_workspace(config.root)
    rows = _read(config, config.data, _SAMPLE_ROWS)
    if rows.height < _SAMPLE_ROWS:  # that was all of it
        check_batches(config.schedule, rows.height)
    for source in config.data.evaluations().values():
        _read(config, source, _SAMPLE_ROWS)
    if config.data.heldout is None and train:
        raise ConfigError("data.heldout is not set: accuracy before and after training is measured on a held-out set; "
                          "set it, or run `saerl curate`")
    _check_models(config)
    if train:
        draft_overrides(config)
        here = sum(disk.used_bytes(run) for run in (config.root / "runs").glob(f"{config.name}-*/checkpoints"))
        disk.require(config.root, _checkpoint_bytes(config) - here, "the checkpoints of the training")


def check_training(config: RunConfig, manifest: Path) -> None:
    """What `saerl train` checks before anything starts: held-out set, policy, overrides, checkpoint, manifest.

    Raises:
        SaerlError: see `check_inputs`.
    """
    from saerl_core.rl.job import build_job

    verify_manifest(manifest)
    if config.data.heldout is None:
        raise ConfigError("data.heldout is not set: accuracy before and after training is measured on a held-out set")
    _read(config, config.data.heldout, _SAMPLE_ROWS)
    build_job(config, manifest, None, config.root / "runs" / "draft", policy_hash="none yet")


def check_sae_training(config: RunConfig) -> None:
    """What `saerl train-sae` checks before anything starts: the section, the model's shape, the first rows, the goal.

    Raises:
        SaerlError: see `check_inputs`.
    """
    from saerl_core.sae_training.corpus import read_corpus
    from tasks.train_sae import choose_out, choose_shape, corpus_source, training_config

    training = training_config(config)
    choose_device(config.features.device)
    choose_out(config)
    reader = models.find(config.features.model, Path(config.base))
    if reader is not None:
        choose_shape(config, models.read_spec(reader))
    if training.corpus is not None:
        read_corpus(sources.find_files(corpus_source(config), Path(config.base)), training.corpus, _SAMPLE_ROWS)
    else:
        _read(config, config.data, _SAMPLE_ROWS)


def check_run(config: RunConfig) -> dict[str, Any]:
    """All of `check_inputs`, on every row; verl's own checks; and the cost.

    Raises:
        SaerlError: see `check_inputs`.
    """
    _check_workspace(config.root)
    verifier = verifiers.load(config.policy, Path(config.base))
    evaluations = [EvaluationSet(name, _read(config, source)) for name, source in config.data.evaluations().items()]
    table, findings = hygiene.mark(_read(config, config.data), evaluations, config.hygiene)
    table, note = verifiers.mark_unverifiable(table, verifier)
    table, lengths_note = _mark_too_long(config, table)
    usable, dropped = prompts.usable(table), prompts.drop_counts(table)
    check_batches(config.schedule, usable.height, dropped)
    sae_spec, model_spec, notes = _check_models(config)
    notes += [*controls.notes(config), *hygiene.summary(findings), *filter(None, [note, lengths_note])]
    _check_server(config)
    if config.data.heldout is None:
        notes.append("data.heldout is not set: this config can be curated, not run")
    if config.coverage.budget is not None and config.coverage.budget >= usable.height:
        notes.append(f"coverage.budget ({config.coverage.budget}) is no less than the usable prompts: all are kept")
    batches = batch_count(config.schedule, min(usable.height, config.coverage.budget or usable.height))
    if config.schedule.steps is not None and batches < config.schedule.steps:
        notes.append(f"schedule.steps = {config.schedule.steps}, but there are at most {batches} batches: "
                     "schedule.epochs repeats them")
    if isinstance(config.clusters.k, int) and config.clusters.k > usable.height:
        notes.append(f"clusters.k = {config.clusters.k} is more than there are prompts: every prompt will be a cluster")
    verl = check_config_only(config)
    return {
        "ok": True,
        "prompts": {"read": table.height, "usable": usable.height, "dropped_by_reason": dropped},
        "batches_at_most": batches,
        "reader": vars(model_spec) if model_spec else None,
        "sae": vars(sae_spec) if sae_spec else None,
        "verifier": verifier.identity,
        "verl": verl.model_dump(mode="json"),
        "cost": _cost(config, usable, batches, sae_spec, model_spec),
        "notes": notes,
    }


def show_check(found: dict[str, Any]) -> None:
    """The findings for a person."""
    from flows.terminal import console

    cost, counts, reader = found["cost"], found["prompts"], found["reader"]
    console.print(f"  [green]✓[/] data       {counts['read']} prompts, {counts['usable']} usable, at most "
                  f"{found['batches_at_most']} batches")
    for reason, count in counts["dropped_by_reason"].items():
        console.print(f"               {count} {reason}")
    layer = f"layer {found['sae']['layer']} of " if found["sae"] else ""
    shape = f"{layer}{reader['layers']} layers, width {reader['d_model']}" if reader else "not here"
    of_sae = "SAE not here"
    if found["sae"]:
        kind = found["sae"]["architecture"]
        of_sae = f"{kind if kind in controls.ENCODERS else f'{kind} SAE'} of {found['sae']['d_sae']}"
    console.print(f"  [green]✓[/] reader     {shape}; {of_sae}")
    console.print(f"  [green]✓[/] verifier   {found['verifier']}")
    console.print(f"  [green]✓[/] verl       {found['verl']['verl']}, {found['verl']['engine']} engine")
    seconds = cost["extract_seconds"]
    how_long = f"about {_duration(seconds)} on this machine" if seconds else "time unknown"
    features = f"; at most {decimal(cost['feature_bytes'])} of features" if cost["feature_bytes"] else ""
    console.print(f"    cost       {cost['tokens']:,} tokens to read, {how_long}{features}", soft_wrap=True)
    console.print(f"               at most {cost['label_answers']:,} answers for labels and keys, "
                  f"{cost['train_answers']:,} in training")
    console.print(f"               {decimal(cost['checkpoint_bytes'])} of checkpoints; "
                  f"{decimal(cost['free_bytes'])} are free")
    for note in found["notes"]:
        console.print(f"    note       {note}", markup=False, soft_wrap=True)


def _read(config: RunConfig, source: SourceConfig, limit: int | None = None) -> pl.DataFrame:
    return prompts.read_table(sources.find_files(source, Path(config.base)), source, config.data, limit)


def _check_models(config: RunConfig) -> tuple[SaeSpec | None, ModelSpec | None, list[str]]:
    """SAE against reader; the SAE's shape is that of the control in its place, if there is one. What is named by hub id
    or registry and not downloaded yet is noted, not fetched."""
    choose_device(config.features.device)
    notes = []
    sae_folder = sae_registry.find(config.features.sae, Path(config.base), config.root)
    if sae_folder is not None:
        sae_spec = read_spec(sae_folder)
        if config.clusters.previous is not None:
            from tasks.cluster import find_previous

            find_previous(config, encoder_hash(sae_folder, config.features))
    else:
        entry = sae_registry.look_up(config.features.sae)
        sae_spec = entry.spec
        notes.append(f"features.sae is not on this machine yet; the run will download it from {entry.repository} "
                     f"(trained on {entry.model})")
    reader = models.find(config.features.model, Path(config.base))
    policy = models.find(config.policy.model, Path(config.base))
    spec = None
    if reader is None:
        notes.append(f"features.model {config.features.model} is not on this machine: its fit with the SAE is checked "
                     "when it is downloaded")
    else:
        spec = models.read_spec(reader)
        if sae_spec is not None:
            choose_layer(sae_spec, spec, config.features.layer)
    if sae_spec is not None:
        sae_spec = encoder_spec(sae_spec, config.features)
    if policy is None:
        notes.append(f"policy.model {config.policy.model} is not on this machine yet; the run will download it")
    elif models.read_spec(policy).max_positions < config.policy.max_prompt_tokens + config.policy.max_response_tokens:
        raise ConfigError(f"policy.max_prompt_tokens ({config.policy.max_prompt_tokens}) + policy.max_response_tokens "
                          f"({config.policy.max_response_tokens}) exceed the policy's context of "
                          f"{models.read_spec(policy).max_positions}")
    return sae_spec, spec, notes


def _check_server(config: RunConfig) -> None:
    if config.labels.source != "server" or config.labels.server is None:
        return
    from saerl_core.rl.server import served_models
    from tasks.label import api_key

    server = config.labels.server
    served = served_models(server, api_key(server))
    if server.model not in served:
        raise ConfigError(f"labels.server.model = {server.model!r} is not served at {server.url}; served: "
                          f"{', '.join(served) or 'none'}")


def _mark_too_long(config: RunConfig, table: pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
    """Prompts beyond the policy's limit are marked, as the run will; of many, a sample is counted for a note."""
    policy, limit = models.find(config.policy.model, Path(config.base)), config.policy.max_prompt_tokens
    if policy is None or not (policy / "tokenizer.json").is_file():  # a guess is no reason to refuse a config
        return table, None

    def count(chats: list[list[dict[str, str]]]) -> list[int]:
        return [round(tokens) for tokens in token_counts(policy, chats, chat_template=True)]

    usable = prompts.usable(table)
    if usable.height <= _COUNTED_ROWS:
        return prompts.mark_too_long(table, count, limit), None
    sample = count(usable["messages"].gather_every(usable.height // _COUNTED_ROWS).to_list())
    share = sum(tokens > limit for tokens in sample) / len(sample)
    return table, (f"about {share:.1%} of the prompts are longer than policy.max_prompt_tokens = {limit} and will be "
                   f"dropped (by {len(sample):,} of them)") if share else None


def _check_workspace(root: Path) -> None:
    """A place that can be written to, or made."""
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    if not there.is_dir():
        raise ConfigError(f"workspace: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"workspace: {there} cannot be written to; name a folder of yours")


def _cost(config: RunConfig, usable: pl.DataFrame, batches: int, sae_spec: SaeSpec | None,
          model_spec: ModelSpec | None) -> dict[str, Any]:
    reader = models.find(config.features.model, Path(config.base))
    sample = usable["messages"].gather_every(max(1, usable.height // 200)).to_list()
    lengths = token_counts(reader, sample, chat_template=config.features.chat_template)
    copies = config.quality.count if config.quality.damages else 0
    tokens_each = sum(min(length, config.features.max_tokens) for length in lengths) / max(len(lengths), 1)
    tokens = round(tokens_each * (usable.height + copies))
    seconds = None
    if model_spec is not None and sae_spec is not None:
        layer = choose_layer(sae_spec, model_spec, config.features.layer)
        seconds = round(tokens * _flops_per_token(model_spec, layer, sae_spec) / _matrix_rate(config), 1)
    labelled = min(config.labels.count, usable.height) if config.labels.source in ("rollouts", "server") else 0
    judged = usable.height if config.quality.keys_by == "agreement" else 0
    return {
        "tokens": tokens,
        "extract_seconds": seconds,
        "feature_bytes": disk.feature_bytes(usable.height, tokens_each, sae_spec) if sae_spec else None,
        "checkpoint_bytes": _checkpoint_bytes(config),
        "free_bytes": disk.free_bytes(config.root),
        "label_answers": labelled * config.labels.samples + judged * config.quality.agreement_samples,
        "train_answers": batches * config.schedule.batch_size * config.train.rollouts,
    }


def _checkpoint_bytes(config: RunConfig) -> int:
    policy = models.find(config.policy.model, Path(config.base))
    return disk.checkpoint_bytes(policy) if policy else 0


def _flops_per_token(model: ModelSpec, layer: int, sae_spec: SaeSpec) -> float:
    """Two per weight: about 12 d² weights a layer (4 d² attention, 8 d² MLP), and the encoder's matrix."""
    return 2 * (12 * model.d_model**2 * (layer + 1) + sae_spec.d_in * sae_spec.d_sae)


def _matrix_rate(config: RunConfig) -> float:
    """Floating-point operations a second that this device does in matrix products, measured in a blink.

    On a CPU by numpy in float32, whatever the precision asked for: torch takes a second to import.
    """
    if choose_device(config.features.device) == "cuda":
        import torch

        dtype = torch.float32 if config.features.dtype == "float32" else torch.bfloat16
        matrix: Any = torch.ones(8192, 8192, device="cuda", dtype=dtype)
    else:
        matrix = np.ones((512, 512), dtype=np.float32)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = max(best, 2 * len(matrix) ** 3 / (time.perf_counter() - started))
    return best / 3  # small kernels and everything that is not a product: a third is what extraction reaches


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
