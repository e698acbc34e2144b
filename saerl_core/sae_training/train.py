"""Documents → an SAE of the reader's residual stream.

Legend: N tokens in a batch, D residual width, S features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saerl_core.backbone import Backbone, token_budget
from saerl_core.config import FeaturesConfig, SaeTrainingConfig
from saerl_core.sae_training import checkpoint
from saerl_core.sae_training.activations import Place, stream
from saerl_core.sae_training.trainer import finish, make_trainer, norm_scale, take_step

if TYPE_CHECKING:
    from sae_lens import TrainingSAE
    from sae_lens.saes.sae import TrainStepOutput

VERSION = 2
_CURVE_POINTS = 200
_DEAD_WINDOW = 1000
"""Steps of silence after which a feature counts as dead; less in a short training."""

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps, a note)."""


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    sae: TrainingSAE[Any]
    curve: list[dict[str, float]]
    """`step`, `loss`, `explained_variance`, `l0`, `dead_share`, `learning_rate` of some 200 steps"""
    steps: int
    documents_read: int
    """over all epochs"""
    resumed_from: int
    """the step at which this process took over; 0 where it began"""


def train(backbone: Backbone, documents: Sequence[Sequence[int]], config: SaeTrainingConfig, features: FeaturesConfig,
          *, d_sae: int, metadata: dict[str, Any], checkpoints: Path, progress: Progress | None = None) -> Trained:
    """Train an SAE, or go on from the newest checkpoint: both end with the same weights.

    Args:
        backbone: The reader, truncated above the layer that is trained on, on the device to train on.
        documents: Token ids.
        config: Architecture and schedule.
        features: How the reader reads: token budget, sink mask.
        d_sae: Number of features.
        metadata: What `cfg.json` is to say of the SAE's origin.
        checkpoints: A folder that belongs to this very training.
        progress: Called after every step.

    Raises:
        DataError: see `activations.stream`.
    """
    steps = config.tokens // config.batch_tokens
    every = max(1, steps // _CURVE_POINTS)
    device = str(backbone.device)
    width = backbone.model.config.get_text_config(decoder=True).hidden_size

    def batches(place: Place) -> Any:
        return stream(backbone, documents, batch_tokens=config.batch_tokens, buffer_tokens=config.buffer_tokens,
                      seed=config.seed, tokens_per_batch=token_budget(backbone, features.tokens_per_batch),
                      sink_norm_ratio=features.sink_norm_ratio, place=place)

    saved = checkpoint.latest(checkpoints)
    scale = checkpoint.read_scale(saved) if saved else norm_scale(next(batches(Place()))[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sae = new_sae(config, d_in=width, d_sae=d_sae, metadata=metadata, steps=steps).to(device)
    trainer = make_trainer(
        sae, steps=steps, batch_tokens=config.batch_tokens, learning_rate=config.learning_rate,
        warm_up_steps=int(config.warmup * steps), decay_steps=int(config.decay * steps),
        dead_window=max(10, min(_DEAD_WINDOW, steps // 10)), scale=scale, device=device)
    place, curve = checkpoint.restore(saved, trainer) if saved else (Place(), [])
    begun = trainer.n_training_steps
    for batch_ND, following in islice(batches(place), steps - begun):
        output = take_step(trainer, batch_ND)
        place, step = following, trainer.n_training_steps
        if step % every == 0 or step in (1, steps):
            dead_share = float(trainer.dead_neurons.float().mean())
            curve.append({"step": step, **_figures(output), "dead_share": dead_share,
                          "learning_rate": trainer.optimizer.param_groups[0]["lr"]})
        if step % config.save_every == 0 or step == steps:  # the last one, for a crash while it is measured
            checkpoint.save(checkpoints, trainer, place, curve)
        if progress is not None:
            progress(step, steps, f"explained variance {curve[-1]['explained_variance']:.2f}" if curve else "")
    return Trained(finish(trainer), curve, steps, place.document, begun)


def new_sae(config: SaeTrainingConfig, *, d_in: int, d_sae: int, metadata: dict[str, Any],
            steps: int) -> TrainingSAE[Any]:
    """A fresh SAE, its weights drawn from torch's global generator.

    JumpReLU is drawn towards k features a token by a quadratic penalty on the distance (Gemma Scope 2), with gradients
    through the thresholds to all parameters and a penalty that revives dead features (Anthropic).
    """
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import SAEMetadata

    common: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "normalize_activations": "expected_average_only_in",
                              "metadata": SAEMetadata(**metadata)}
    match config.architecture:
        case "topk":
            return TopKTrainingSAE(TopKTrainingSAEConfig(k=config.k, **common))
        case "batchtopk":
            return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=config.k, **common))
        case "jumprelu":
            return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(
                jumprelu_sparsity_loss_mode="quadratic", target_l0=config.k, l0_warm_up_steps=steps // 2,
                jumprelu_ste_to_input=True, pre_act_loss_coefficient=3e-6, **common))


@torch.no_grad()
def _figures(output: TrainStepOutput) -> dict[str, float]:
    x_ND, found_ND = output.sae_in, output.sae_out
    error, variance = (x_ND - found_ND).square().sum(), (x_ND - x_ND.mean(0)).square().sum()
    return {"loss": float(output.loss), "explained_variance": float(1 - error / variance),
            "l0": float((output.feature_acts > 0).sum(1).float().mean())}
