"""One YAML file → one `RunConfig`. Every field says what it does; checks across fields name both.

A section is handed to its stage as it is, and the stage's cache key is made of that section: a field belongs to
the one section whose output it changes.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from saerl_core import locations
from saerl_core.errors import ConfigError

INCIDENTAL = object()
"""Marks fields that say where something is or how fast it goes. They change no result, so they are in no cache key:
what lies at a place counts by its content hash."""

Place = Annotated[str, INCIDENTAL]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def content(section: Section) -> dict[str, Any]:
    """A section as JSON values, without what is incidental: the part that belongs in a cache key."""
    kept = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if INCIDENTAL not in field.metadata:
            kept[name] = content(value) if isinstance(value, Section) else value
    return kept


class ColumnsConfig(Section):
    """Which column of the file holds which field of a prompt. `null` means that the file has no such column."""

    id: str | None = None
    """A name for the row, unique in the file. Without one, rows are named by their content hash."""
    prompt: str = "prompt"
    """The prompt: text, or a list of chat messages `{role, content}`."""
    answer: str = "answer"
    """The reference answer. `a.b` reaches into a nested column (`reward_model.ground_truth`)."""
    subject: str | None = None
    """A topic label. Used in the report only."""
    level: str | None = None
    """A difficulty level, if the data set has one. Used in the report only."""
    pass_rate: str | None = None
    """Measured pass rates in [0, 1], used when `labels.source: column`."""


PRESETS: dict[str, ColumnsConfig] = {
    "gsm8k": ColumnsConfig(prompt="question", answer="answer"),
    "math": ColumnsConfig(prompt="problem", answer="answer", subject="subject", level="level"),
    "deepscaler": ColumnsConfig(prompt="problem", answer="answer"),
    "deepmath": ColumnsConfig(prompt="question", answer="final_answer", subject="topic", level="difficulty"),
    "verl": ColumnsConfig(prompt="prompt", answer="reward_model.ground_truth"),
    "saerl": ColumnsConfig(id="id", prompt="problem", answer="answer"),
}
"""Column names of data sets that people really use."""


class SourceConfig(Section):
    """A prompt file and how to read it."""

    path: Place
    """JSON lines (`.jsonl`, `.jsonl.gz`), `.parquet` or `.csv`; relative to the config file."""
    preset: Literal["gsm8k", "math", "deepscaler", "deepmath", "verl", "saerl"] | None = None
    """Column names of a known data set. `columns` overrides it, field by field."""
    columns: ColumnsConfig = ColumnsConfig()
    """Column names, where no preset fits."""
    answer_pattern: str | None = None
    """A regular expression; its first group is the answer (GSM8K as published: `#### (.+)$`)."""

    @field_validator("answer_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from error
            if groups < 1:
                raise ValueError("needs a group (...) that holds the answer")
        return pattern

    def effective_columns(self) -> ColumnsConfig:
        """The preset's columns, overridden by those that the config names."""
        base = PRESETS[self.preset] if self.preset else ColumnsConfig()
        return base.model_copy(update={name: getattr(self.columns, name) for name in self.columns.model_fields_set})


class DataConfig(SourceConfig):
    """The prompts to curate."""

    name: str = "prompts"
    """verl's `data_source`: one word that names the data set in metrics and rewards."""
    instruction: str = ""
    """Text appended to every prompt (for example: how to mark the final answer)."""
    system: str = ""
    """A system message put before every prompt that has none."""
    heldout: SourceConfig | None = None
    """The evaluation set. Prompts that occur in it are dropped; accuracy before and after is measured on it."""


class FeaturesConfig(Section):
    """Which model is read, through which SAE, and how the tokens of a prompt become one row."""

    model: Place
    """The reader: folder or hub id of a causal LM. It need not be the policy."""
    sae: Place
    """Folder of an SAE in sae-lens's format (`cfg.json`, `sae_weights.safetensors`)."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Read the residual stream after this layer (0-based). Default: the layer the SAE says it was trained on."""
    max_tokens: Count = 1024
    """A longer prompt is read up to here (and counted in the health figures)."""
    chat_template: bool = True
    """Render prompts with the reader's chat template, if it has one. False: plain text."""
    sink_norm_ratio: Annotated[float, Field(gt=1)] = 10.0
    """Mask tokens whose residual norm exceeds this multiple of the prompt's median (attention sinks)."""
    tokens_per_batch: Annotated[Count, INCIDENTAL] = 4096
    """Token budget of one forward pass, padding included."""
    shard_rows: Annotated[Count, INCIDENTAL] = 512
    """Prompts per shard: what a crash can lose, and one mapped task in the UI."""
    device: Annotated[Literal["auto", "cpu", "cuda"], INCIDENTAL] = "auto"
    """Where to run. `auto`: the GPU, if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass. `auto`: bfloat16 on a GPU, float32 on a CPU."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you ask for it here."""


class ClustersConfig(Section):
    """Diversity: k-means over what the SAE sees."""

    k: Annotated[int, Field(ge=2)] = 32
    """Number of clusters."""
    dims: Count = 512
    """Width of the count-sketch in which k-means runs."""
    idf: bool = True
    """Weigh features by inverse document frequency: a common background tells prompts apart badly."""
    iterations: Count = 25
    """Upper bound on k-means iterations."""
    restarts: Count = 3
    """k-means runs; the best objective wins."""
    seed: int = 0
    """Seed of the sketch and of k-means."""


class LabelsConfig(Section):
    """A small labelled subset, from which difficulty is learned."""

    source: Literal["rollouts", "column", "none"] = "rollouts"
    """`rollouts`: sample answers with the policy and verify them. `column`: `data.columns.pass_rate`. `none`."""
    count: Annotated[int, Field(ge=20)] = 300
    """Number of prompts to label, spread over the clusters in proportion to their size."""
    samples: Count = 8
    """Answers sampled per prompt, at temperature 1."""
    seed: int = 0
    """Seed of the choice and of the sampling."""


class DifficultyConfig(Section):
    """Difficulty: a proxy for 1 − pass rate, fitted on the labelled subset."""

    method: Literal["elastic_net"] = "elastic_net"
    """ElasticNet on pooled features, its strength chosen by cross-validation (the paper's proxy)."""
    l1_ratio: Share = 0.5
    """Mix of L1 (1.0) and L2 (0.0)."""
    min_rows_per_feature: Count = 3
    """Features that fire on fewer labelled prompts are left out."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Cross-validation folds, for the penalty and for the held-out figures."""


CorruptionKind = Literal["garbled_words", "garbled_letters", "truncated", "question_removed", "numbers_removed"]


class QualityConfig(Section):
    """Quality: a probe that tells intact prompts from corrupted ones."""

    method: Literal["logistic", "none"] = "logistic"
    """Logistic regression on pooled features of your prompts and of corrupted copies. `none`: keep everything."""
    count: Annotated[int, Field(ge=40)] = 400
    """Prompts from which corrupted copies are made, one each."""
    corruptions: Annotated[tuple[CorruptionKind, ...], Field(min_length=1)] = (
        "garbled_words", "garbled_letters", "truncated", "question_removed", "numbers_removed",
    )
    """Kinds of damage, in equal shares."""
    threshold: Share = 0.5
    """Prompts that score lower are dropped."""
    max_drop_share: Share = 0.25
    """Never drop more than this share: the best of those below the threshold are kept, and the report says so."""
    min_auc: Annotated[float, Field(ge=0.5, le=1)] = 0.6
    """The gate: the 95% lower bound of the held-out AUC must exceed this, or nothing is filtered."""
    max_gap: Share = 0.2
    """The gate: training AUC may exceed held-out AUC by this much, or the probe merely memorises."""
    seed: int = 0
    """Seed of the corruptions and of the split."""


class ScheduleConfig(Section):
    """Which prompts share a batch, and in which order the batches come."""

    batch_size: Count = 32
    """Prompts per batch. verl takes one batch a step."""
    clusters_per_batch: Count = 4
    """A batch is drawn from this many clusters, taking turns."""
    tail_mix: Share = 0.25
    """Share of each batch's tail that is exchanged with the next batch."""
    curriculum: Literal["within_clusters", "none"] = "within_clusters"
    """`within_clusters`: each cluster from easy to hard. `none`: each cluster shuffled."""
    max_difficulty: Share = 1.0
    """Prompts predicted harder than this are left out: a group that is never solved has no advantage."""
    steps: Count | None = None
    """Number of batches. Default: all full batches of one epoch."""
    epochs: Count = 1
    """Passes over the kept prompts, each in the same order of batches."""
    seed: int = 0
    """Seed of the order of clusters and of ties."""

    @model_validator(mode="after")
    def _clusters_fit_batch(self) -> Self:
        if self.clusters_per_batch > self.batch_size:
            raise ValueError(f"schedule.clusters_per_batch ({self.clusters_per_batch}) is larger than "
                             f"schedule.batch_size ({self.batch_size}): a batch cannot hold that many clusters")
        return self


class PolicyConfig(Section):
    """The model that is trained, and how its answers are judged."""

    model: Place
    """Folder or hub id of the policy."""
    verifier: Literal["exact"] = "exact"
    """`exact`: the text after the last `#` marker (or in the last \\boxed{}) equals the answer, spelling apart."""
    max_prompt_tokens: Count = 512
    """Longer prompts are dropped: verl would cut them on the left with a mere warning."""
    max_response_tokens: Count = 512
    """Sampling stops here."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you ask for it here."""


class TrainConfig(Section):
    """The verl job."""

    engine: Literal["auto", "cpu", "gpu"] = "auto"
    """`gpu`: vLLM rollouts. `cpu`: transformers rollouts through SAERL's CPU platform. `auto`: by what is there."""
    rollouts: Annotated[int, Field(ge=2)] = 8
    """Answers per prompt: GRPO's group size."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    """AdamW's learning rate, constant after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL loss against the initial policy; 0 needs no reference model."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clip range of the ratio."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """Upper clip range; DAPO uses 0.28."""
    loss_aggregation: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"] = "token-mean"
    """How token losses become one loss (verl's `loss_agg_mode`)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature of the rollouts."""
    micro_batch_size: Count = 8
    """Sequences per forward-backward pass and GPU."""
    save_every: Count = 10
    """Steps between checkpoints."""
    test_every: Count = 10
    """Steps between verl's own validations on the held-out set."""
    test_prompts: Count = 256
    """Held-out prompts in each of these validations (the first ones)."""
    gpus: Count = 1
    """GPUs per node."""
    nodes: Count = 1
    """Ray nodes."""
    tensor_parallel: Count = 1
    """vLLM's tensor parallelism."""
    python: str | None = None
    """Interpreter of the environment that has verl. Default: this one."""
    seed: int = 0
    """Seed of the policy's sampling."""
    resume_from: Place | None = None
    """A checkpoint of another training run (`runs/NAME/checkpoints/global_step_N`) to go on from, though it was trained
    on another manifest: the next step is batch N + 1 of this one. Default: a run resumes from its own only."""
    retries: Annotated[int, Field(ge=0)] = 1
    """How often a job that died is resumed from its last checkpoint before the run fails."""
    overrides: tuple[str, ...] = ()
    """Further hydra overrides for verl, last word. Those that would change the order of prompts are refused."""

    @model_validator(mode="after")
    def _parallelism_fits(self) -> Self:
        if self.gpus % self.tensor_parallel:
            raise ValueError(f"train.gpus ({self.gpus}) is not a multiple of train.tensor_parallel "
                             f"({self.tensor_parallel})")
        return self


class EvaluationConfig(Section):
    """Accuracy on the held-out set, before and after training."""

    prompts: Count = 1000
    """Held-out prompts (the first ones)."""
    samples: Count = 4
    """Answers per prompt at temperature 1; accuracy is their mean. Greedy accuracy is reported beside it."""
    seed: int = 0
    """Seed of the sampling."""


class RunConfig(Section):
    """Everything that one run needs to know."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$"), INCIDENTAL] = "run"
    """Names the run in folders, tags and the UI: lower-case letters, digits, `-` and `_`."""
    workspace: Place = "saerl-out"
    """Everything that SAERL writes goes under this folder; relative to the config file."""
    data: DataConfig
    features: FeaturesConfig
    clusters: ClustersConfig = ClustersConfig()
    labels: LabelsConfig = LabelsConfig()
    difficulty: DifficultyConfig = DifficultyConfig()
    quality: QualityConfig = QualityConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    policy: PolicyConfig
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    base: Place = "."
    """Folder to which relative paths refer. Set by the reader of the file; rarely by hand."""

    @model_validator(mode="after")
    def _labels_have_a_source(self) -> Self:
        if self.labels.source == "column" and self.data.effective_columns().pass_rate is None:
            raise ValueError("labels.source is 'column' but data.columns.pass_rate names none: "
                             "name the column, or set labels.source: rollouts")
        return self

    def resolve(self, name: str) -> Path:
        """The path that a name in this config means."""
        return locations.resolve(name, Path(self.base))

    @property
    def root(self) -> Path:
        """The workspace's folder."""
        return self.resolve(self.workspace)


def load_config(path: Path, overrides: tuple[str, ...] = (), base: Path | None = None) -> RunConfig:
    """Read a YAML config; `overrides` are `section.field=value` pairs whose values are YAML too.

    Relative paths refer to `base`, by default the folder of the config.

    Raises:
        ConfigError: one line that names the file, the field, its value, and the nearest known field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file; `saerl init` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as `data:` and `features:`, found {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    return build_config(tree, base=base or path.resolve().parent, where=str(path))


def build_config(tree: dict[str, Any], base: Path, where: str = "config") -> RunConfig:
    """Validate a config tree whose relative paths refer to `base`.

    Raises:
        ConfigError: see `load_config`.
    """
    try:
        return RunConfig.model_validate({"base": str(base), **tree})
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from error


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected section.field=value")
    *parents, leaf = key.strip().split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {name!r} is not a section")
        tree = child
    try:
        tree[leaf] = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error


def _first_line(error: ValidationError) -> str:
    """The first of pydantic's errors as one line; unknown keys first, for they explain missing ones."""
    details = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first, more = details[0], len(details) - 1
    suffix = f" (and {more} more)" if more else ""
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}{suffix}"
    if first["type"] == "missing":
        return f"{where} is missing{suffix}"
    message = first["msg"].removeprefix("Value error, ")
    if not where or isinstance(first["input"], dict):
        return message + suffix  # a check across fields, which names them itself
    value = repr(first["input"])
    return f"{where} = {value if len(value) <= 60 else value[:57] + '...'}: {message}{suffix}"


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
    return sorted(name for name in model.model_fields if name != "base")
