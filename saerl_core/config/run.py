"""`RunConfig`: all sections, and the checks across them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from saerl_core import locations
from saerl_core.config.comparison import CompareConfig
from saerl_core.config.curation import (
    ClustersConfig,
    CoverageConfig,
    DifficultyConfig,
    LabelsConfig,
    QualityConfig,
    ScheduleConfig,
)
from saerl_core.config.data import DataConfig, HygieneConfig
from saerl_core.config.reading import FeaturesConfig, SaeTrainingConfig
from saerl_core.config.section import INCIDENTAL, Place, Section
from saerl_core.config.training import EvaluationConfig, PolicyConfig, TrainConfig


class RunConfig(Section):
    """Everything that one run needs to know."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$"), INCIDENTAL] = "run"
    """Names the run in folders, tags and the UI: lower-case letters, digits, `-` and `_`."""
    workspace: Place = "saerl-out"
    """Everything that SAERL writes goes under this folder; relative to the config file."""
    data: DataConfig
    hygiene: HygieneConfig = HygieneConfig()
    features: FeaturesConfig
    clusters: ClustersConfig = ClustersConfig()
    labels: LabelsConfig = LabelsConfig()
    difficulty: DifficultyConfig = DifficultyConfig()
    quality: QualityConfig = QualityConfig()
    coverage: CoverageConfig = CoverageConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    policy: PolicyConfig
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compare: CompareConfig = CompareConfig()
    """Used by `saerl compare` only."""
    sae_training: SaeTrainingConfig | None = None
    """Used by `saerl train-sae` only."""
    base: Place = "."
    """Folder to which relative paths refer. Set by the reader of the file; rarely by hand."""

    @model_validator(mode="after")
    def _methods_have_their_columns(self) -> Self:
        columns = self.data.columns
        if self.difficulty.method == "level" and columns.level is None:
            raise ValueError("difficulty.method is 'level' but data.columns.level names none: name the column, or set "
                             "difficulty.method: ridge")
        if self.quality.fitted and self.quality.labels == "column" and columns.quality is None:
            raise ValueError("quality.labels is 'column' but data.columns.quality names none: name the column, or set "
                             "quality.labels: corruptions")
        if self.quality.fitted and self.quality.labels == "rollouts" and self.labels.source == "none":
            raise ValueError("quality.labels is 'rollouts' but labels.source is 'none': nothing is labelled")
        return self

    @model_validator(mode="after")
    def _labels_have_a_source(self) -> Self:
        if self.labels.source == "column" and self.data.columns.pass_rate is None:
            raise ValueError("labels.source is 'column' but data.columns.pass_rate names none: "
                             "name the column, or set labels.source: rollouts")
        if self.labels.source == "level" and self.data.columns.level is None:
            raise ValueError("labels.source is 'level' but data.columns.level names none: "
                             "name the column, or set labels.source: rollouts")
        if self.labels.source == "server" and self.labels.server is None:
            raise ValueError("labels.source is 'server' but labels.server is not set: give its url and model")
        return self

    @model_validator(mode="after")
    def _rarity_means_something(self) -> Self:
        if self.features.encoder == "residual":
            if self.clusters.weights == "idf":
                raise ValueError("features.encoder is 'residual', whose features all fire everywhere, but "
                                 "clusters.weights is 'idf', which weighs them by rarity: set clusters.weights: "
                                 "deviation")
            if self.hygiene.sae_similarity is not None:
                raise ValueError("features.encoder is 'residual', whose features all fire everywhere, but "
                                 f"hygiene.sae_similarity ({self.hygiene.sae_similarity}) weighs them by rarity: set "
                                 "it to null")
        return self

    @model_validator(mode="after")
    def _one_layer(self) -> Self:
        training = self.sae_training
        if training and None not in (training.layer, self.features.layer) and training.layer != self.features.layer:
            raise ValueError(f"sae_training.layer ({training.layer}) and features.layer ({self.features.layer}) "
                             "differ: the SAE is trained on the layer that is read")
        return self

    @model_validator(mode="after")
    def _coverage_fills_a_batch(self) -> Self:
        if self.coverage.budget is not None and self.coverage.budget < self.schedule.batch_size:
            raise ValueError(f"coverage.budget ({self.coverage.budget}) is smaller than schedule.batch_size "
                             f"({self.schedule.batch_size}): not one batch could be filled")
        return self

    def resolve(self, name: str) -> Path:
        """The path that a name in this config means."""
        return locations.resolve(name, Path(self.base))

    @property
    def root(self) -> Path:
        """The workspace's folder."""
        return self.resolve(self.workspace)
