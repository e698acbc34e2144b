"""One YAML file → one `RunConfig`. Every field says what it does; checks across fields name both.

A section is handed to its stage as it is, and the stage's cache key is made of that section: a field belongs to
the one section whose output it changes.
"""

from saerl_core.config.comparison import ArmConfig, CompareConfig
from saerl_core.config.curation import (
    ClustersConfig,
    CorruptionKind,
    CoverageConfig,
    DifficultyConfig,
    LabelsConfig,
    QualityConfig,
    ScheduleConfig,
    ServerConfig,
)
from saerl_core.config.data import (
    HUB_PREFIX,
    PRESETS,
    ColumnsConfig,
    DataConfig,
    HygieneConfig,
    Preset,
    SourceConfig,
)
from saerl_core.config.load import (
    build_config,
    load_config,
)
from saerl_core.config.reading import (
    CorpusConfig,
    FeaturesConfig,
    SaeTrainingConfig,
)
from saerl_core.config.run import (
    RunConfig,
)
from saerl_core.config.section import (
    INCIDENTAL,
    Count,
    Place,
    Section,
    Seed,
    Share,
    content,
)
from saerl_core.config.training import (
    EvaluationConfig,
    PolicyConfig,
    TrainConfig,
)

__all__ = [
    "HUB_PREFIX",
    "INCIDENTAL",
    "PRESETS",
    "ArmConfig",
    "ClustersConfig",
    "ColumnsConfig",
    "CompareConfig",
    "CorpusConfig",
    "CorruptionKind",
    "Count",
    "CoverageConfig",
    "DataConfig",
    "DifficultyConfig",
    "EvaluationConfig",
    "FeaturesConfig",
    "HygieneConfig",
    "LabelsConfig",
    "Place",
    "PolicyConfig",
    "Preset",
    "QualityConfig",
    "RunConfig",
    "SaeTrainingConfig",
    "ScheduleConfig",
    "Section",
    "Seed",
    "ServerConfig",
    "Share",
    "SourceConfig",
    "TrainConfig",
    "build_config",
    "content",
    "load_config",
]
