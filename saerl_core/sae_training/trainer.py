"""sae-lens's trainer, set up for a given run; also trains the toy's SAE.

Legend: N tokens in a batch, D residual width, S features.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saerl_core.sae_spec import tidy

if TYPE_CHECKING:
    from sae_lens import SAETrainer, TrainingSAE
    from sae_lens.saes.sae import TrainStepOutput

    Trainer = SAETrainer[TrainingSAE[Any], Any]


def make_trainer(sae: TrainingSAE[Any], *, steps: int, batch_tokens: int, learning_rate: float, warm_up_steps: int,
                 decay_steps: int, dead_window: int, scale: float, device: str = "cpu") -> Trainer:
    """A trainer that is fed batch by batch.

    sae-lens's own `fit` draws bars on stderr, estimates the scale from a sample, and cannot be left and resumed.

    Args:
        sae: The SAE, fresh or with restored weights.
        steps: Length of the whole training.
        batch_tokens: Tokens a step.
        learning_rate: Between warm-up and decay; it falls to zero at the end where there is a decay.
        warm_up_steps: Steps of the linear rise.
        decay_steps: Steps of the linear fall.
        dead_window: Steps of silence after which a feature counts as dead.
        scale: Factor that brings the inputs to a mean norm of √D; folded into the weights by `finish`.
        device: Where.
    """
    from sae_lens import SAETrainer
    from sae_lens.config import SAETrainerConfig

    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * batch_tokens,
            train_batch_size_samples=batch_tokens,
            lr=learning_rate,
            lr_end=learning_rate,  # must be given; a constant schedule does not use it
            lr_warm_up_steps=warm_up_steps,
            lr_decay_steps=decay_steps,
            dead_feature_window=dead_window,
            feature_sampling_window=steps,  # statistics over the whole run
            device=device,
        ),
        sae=sae,
        data_provider=iter(()),
    )
    trainer.activation_scaler.scaling_factor = scale
    return trainer


def norm_scale(h_ND: torch.Tensor) -> float:
    """The factor that brings activations to a mean norm of √D."""
    return h_ND.shape[1] ** 0.5 / float(h_ND.float().norm(dim=-1).mean())


def take_step(trainer: Trainer, batch_ND: torch.Tensor) -> TrainStepOutput:
    """One optimiser step on raw activations."""
    output = trainer.step(batch_ND)
    trainer.n_training_steps += 1
    return output


def finish(trainer: Trainer) -> TrainingSAE[Any]:
    """The trained SAE, the scale of its inputs folded into its weights."""
    assert trainer.activation_scaler.scaling_factor is not None
    trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    return trainer.sae.eval()


def save_sae(sae: TrainingSAE[Any], folder: Path) -> None:
    """Write `cfg.json` and `sae_weights.safetensors`, which `SAE.load_from_disk` reads as an inference SAE."""
    tidy(*sae.to("cpu").save_inference_model(folder))
