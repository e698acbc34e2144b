"""The state of a training between two steps, on disk: safetensors and JSON, complete or absent.

sae-lens's own checkpoint is a pickle and leaves out where the data stood. Nothing in a step draws at random and the
order of the data follows from its place, so there is no generator to save: weights, Adam's moments, the schedulers, the
trainer's counters and the place are the whole state.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from saerl_core import artifact
from saerl_core.errors import ArtifactError
from saerl_core.sae_training.activations import Place

if TYPE_CHECKING:
    from saerl_core.sae_training.trainer import Trainer

_TENSORS, _STATE = "state.safetensors", "state.json"
_COUNTERS = ("n_training_steps", "n_training_samples", "n_frac_active_samples")
_STATISTICS = ("act_freq_scores", "n_forward_passes_since_fired")


def save(folder: Path, trainer: Trainer, place: Place, curve: list[dict[str, float]]) -> None:
    """Keep the state in `folder`, in place of older ones."""
    optimizer = trainer.optimizer.state_dict()
    moments = {f"adam.{number}.{name}": value for number, values in optimizer["state"].items()
               for name, value in values.items()}
    tensors = {
        **{f"sae.{name}": value for name, value in trainer.sae.state_dict().items()},
        **moments,
        **{name: getattr(trainer, name) for name in _STATISTICS},
    }
    state = {
        "place": asdict(place),
        "counters": {name: getattr(trainer, name) for name in _COUNTERS},
        "adam": optimizer["param_groups"],
        "learning_rate": trainer.lr_scheduler.state_dict(),
        "coefficients": {name: scheduler.state_dict() for name, scheduler in trainer.coefficient_schedulers.items()},
        "scale": trainer.activation_scaler.scaling_factor,
        "curve": curve,
    }
    with artifact.staging(folder) as staged:
        safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, staged / _TENSORS)
        (staged / _STATE).write_text(json.dumps(state), encoding="utf-8")
        kept = artifact.seal(staged, f"step-{trainer.n_training_steps:08d}", {"step": trainer.n_training_steps})
    for older in folder.glob("step-*"):
        if older != kept.path:
            shutil.rmtree(older)


def latest(folder: Path) -> Path | None:
    """The newest intact checkpoint; damaged ones are passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            artifact.verify_folder(path, path.name.rpartition("-")[2])
        except ArtifactError:
            continue
        return path
    return None


def read_scale(path: Path) -> float:
    """The scale of the inputs that a checkpoint was trained with."""
    return _read_state(path)["scale"]


def restore(path: Path, trainer: Trainer) -> tuple[Place, list[dict[str, float]]]:
    """Put a checkpoint's state into a fresh trainer; returns the place in the data, and the curve so far."""
    tensors, state = safetensors.torch.load_file(path / _TENSORS, device=trainer.cfg.device), _read_state(path)
    trainer.sae.load_state_dict({name.removeprefix("sae."): value for name, value in tensors.items()
                                 if name.startswith("sae.")})
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, number, moment = name.split(".")
            moments.setdefault(int(number), {})[moment] = value
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": state["adam"]})
    trainer.lr_scheduler.load_state_dict(state["learning_rate"])
    for name, scheduler in trainer.coefficient_schedulers.items():
        scheduler.load_state_dict(state["coefficients"][name])
    for name in _COUNTERS:
        setattr(trainer, name, state["counters"][name])
    for name in _STATISTICS:
        setattr(trainer, name, tensors[name])
    return Place(**state["place"]), state["curve"]


def _read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / _STATE).read_text(encoding="utf-8"))
