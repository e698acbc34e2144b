"""One YAML file → one `RunConfig`. Every field says what it does; checks across fields name both.

A section is handed to its stage as it is, and the stage's cache key is made of that section: a field belongs to
the one section whose output it changes.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from saerl_core import locations
from saerl_core.errors import ConfigError
from saerl_core.rl.verl_side.saerl_judge import PATTERN as VERIFIER_PATTERN

INCIDENTAL = object()
"""Marks fields that say where something is or how fast it goes. They change no result, so they are in no cache key:
what lies at a place counts by its content hash."""

Place = Annotated[str, INCIDENTAL]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31 - 1)]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def content(section: Section) -> dict[str, Any]:
    """A section as JSON values, without what is incidental: the part that belongs in a cache key."""
    kept = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if INCIDENTAL not in field.metadata:
            kept[name] = _content(value)
    return kept


def _content(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_content(item) for item in value]
    return content(value) if isinstance(value, Section) else value


class ColumnsConfig(Section):
    """Which column of the file holds which field of a prompt. `null` means that the file has no such column."""

    id: str | None = None
    """A name for the row, unique in the data set. Without one, rows are named by their content hash."""
    prompt: str = "prompt"
    """The prompt: text, or a list of chat messages `{role, content}`."""
    answer: str = "answer"
    """The reference answer. `a.b` reaches into a nested column (`reward_model.ground_truth`)."""
    subject: str | None = None
    """A topic label. Used in the report only."""
    level: str | None = None
    """A difficulty level, if the data set has one, higher = harder: a number, or a text such as `Level 5`."""
    pass_rate: str | None = None
    """Measured pass rates in [0, 1], used when `labels.source: column`."""
    quality: str | None = None
    """How good the prompt is: a number in [0, 1], or true and false."""
    solution: str | None = None
    """A worked solution, as text."""


class Preset(Section):
    """How a known data set is laid out. A column other than prompt and answer may be missing from a copy of it."""

    columns: ColumnsConfig
    """Its column names."""
    answer_pattern: str | None = None
    """Where the answer is in its column, if not all of it."""


_BALANCED = r"[^{}]*"
for _ in range(5):  # braces within braces, as deep as answers go
    _BALANCED = rf"(?:[^{{}}]|\{{{_BALANCED}\}})*"
_LAST_BOXED = rf"(?s:.*)\\(?:boxed|fbox)\s*\{{?((?<=\{{){_BALANCED}(?=\}})|(?<!\{{)[^\s{{}}$]+)"
"""The last \\boxed{...} of a solution; MATH also has `\\boxed 5` and \\fbox."""

PRESETS: dict[str, Preset] = {
    "gsm8k": Preset(columns=ColumnsConfig(prompt="question", answer="answer", solution="answer"),
                    answer_pattern=r"####\s*(.+?)\s*$"),
    "math": Preset(columns=ColumnsConfig(prompt="problem", answer="answer", subject="subject", level="level",
                                         solution="solution")),
    "hendrycks_math": Preset(columns=ColumnsConfig(prompt="problem", answer="solution", subject="type", level="level",
                                                   solution="solution"), answer_pattern=_LAST_BOXED),
    "deepscaler": Preset(columns=ColumnsConfig(prompt="problem", answer="answer", solution="solution")),
    "deepmath": Preset(columns=ColumnsConfig(prompt="question", answer="final_answer", subject="topic",
                                             level="difficulty")),
    "dapo": Preset(columns=ColumnsConfig(prompt="prompt", answer="reward_model.ground_truth")),
    "verl": Preset(columns=ColumnsConfig(prompt="prompt", answer="reward_model.ground_truth")),
    "saerl": Preset(columns=ColumnsConfig(id="id", prompt="problem", answer="answer", subject="subject", level="level",
                                          pass_rate="pass_rate", solution="solution")),
}
"""Layouts of data sets that people really use, as published: GSM8K (openai/gsm8k), MATH-500 (HuggingFaceH4/MATH-500)
and MATH (`hendrycks_math`), DeepScaleR-Preview, DeepMath-103K, DAPO-Math-17k (which repeats its rows many times; the
copies are dropped), verl's own parquet files, and SAERL's own JSON lines."""

HUB_PREFIX = "hub:"
"""A data path that starts with this names a data set on the Hugging Face hub."""


class SourceConfig(Section):
    """A set of prompts and how to read it."""

    path: Place
    """A file (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet`, `.csv`, `.arrow`), a folder of such files, read in the
    order of their names, or `hub:owner/name`, a data set on the hub. Relative to the config file."""
    split: Annotated[str | None, Field(pattern=r"^\w+(\.\w+)*$"), INCIDENTAL] = None
    """Split of a hub data set. Default: `train`."""
    subset: Annotated[str | None, INCIDENTAL] = None
    """Subset of a hub data set (`main` of openai/gsm8k)."""
    revision: Annotated[str | None, INCIDENTAL] = None
    """Commit, tag or branch of a hub data set. Default: what its main branch is now."""
    name: str = ""
    """What the report calls an evaluation set. Default: `heldout`, or its place in the list."""
    preset: Literal["gsm8k", "math", "hendrycks_math", "deepscaler", "deepmath", "dapo", "verl", "saerl"] | None = None
    """Columns of a known data set. `columns` overrides it, field by field."""
    columns: ColumnsConfig = ColumnsConfig()
    """Column names, where no preset fits."""
    answer_pattern: str | None = None
    """A regular expression; its first group is the answer (`Answer: (.+)$`). Default: the preset's, if it has one."""

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

    @model_validator(mode="after")
    def _hub_fields_have_a_hub(self) -> Self:
        if not self.path.startswith(HUB_PREFIX):
            for field in ("split", "subset", "revision"):
                if getattr(self, field) is not None:
                    raise ValueError(f"{field} = {getattr(self, field)!r} belongs to a data set on the hub, and path = "
                                     f"{self.path!r} is none (it would start with {HUB_PREFIX!r})")
        elif not re.fullmatch(r"[\w.-]+/[\w.-]+", self.path.removeprefix(HUB_PREFIX)):
            raise ValueError(f"path = {self.path!r}: expected hub:owner/name")
        return self

    def effective_columns(self) -> ColumnsConfig:
        """The preset's columns, overridden by those that the config names."""
        base = PRESETS[self.preset].columns if self.preset else ColumnsConfig()
        return base.model_copy(update={name: getattr(self.columns, name) for name in self.columns.model_fields_set})

    def effective_answer_pattern(self) -> str | None:
        """The config's pattern, or the preset's where that one's answer column is used."""
        if self.answer_pattern is None and self.preset and "answer" not in self.columns.model_fields_set:
            return PRESETS[self.preset].answer_pattern
        return self.answer_pattern


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
    decontaminate: tuple[SourceConfig, ...] = ()
    """Further evaluation sets whose prompts must not be trained on."""

    def evaluations(self) -> dict[str, SourceConfig]:
        """Every evaluation set by its name: the held-out set first, if there is one."""
        sets = [(self.heldout.name or "heldout", self.heldout)] if self.heldout else []
        sets += [(source.name or f"evaluation {number}", source)
                 for number, source in enumerate(self.decontaminate, start=1)]
        return dict(sets)

    @model_validator(mode="after")
    def _evaluations_have_names_of_their_own(self) -> Self:
        if len(self.evaluations()) < len(self.decontaminate) + (self.heldout is not None):
            raise ValueError("two of data.heldout and data.decontaminate have the same name")
        return self


class HygieneConfig(Section):
    """What counts as a copy. Exact duplicates, one text with two answers, and prompts of an evaluation set always go.

    Near copies must have the same numbers and the same answer: two problems of one template are not duplicates.
    """

    ngram: Annotated[int, Field(ge=1, le=13)] = 3
    """Words per n-gram, for the two overlaps below."""
    near_duplicate_overlap: Annotated[float, Field(gt=0, le=1)] | None = 0.6
    """Drop a prompt that shares this much of its n-grams with an earlier one (Jaccard). `null`: do not look."""
    contamination_overlap: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Drop a prompt that holds this share of the n-grams of an evaluation prompt. `null`: word for word only."""
    sae_similarity: Annotated[float, Field(gt=0, le=1)] | None = None
    """Drop a prompt whose SAE features are this close to an earlier one's (cosine; 0.9 is a start). Default: off."""


class FeaturesConfig(Section):
    """Which model is read, through which SAE, and how the tokens of a prompt become one row."""

    model: Place
    """The reader: folder or hub id of a causal LM. It need not be the policy."""
    sae: Place
    """Folder of an SAE in sae-lens's format (`cfg.json`, `sae_weights.safetensors`), or `sae-lens:RELEASE/SAE_ID` from
    sae-lens's registry."""
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


class CorpusConfig(Section):
    """Text on which an SAE is trained."""

    path: Place
    """A file or folder as for `data.path`; relative to the config file."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Columns whose texts, joined by blank lines, make one document. One column may hold lists of chat messages."""
    chat: bool = False
    """Read each text as a user's message in the chat template, as prompts are read. False: plain text."""


class SaeTrainingConfig(Section):
    """`saerl train-sae`: an SAE for the reader, trained on its own residual stream. What is read and how comes from
    `features`: the model, the template, the token limit, the mask of sinks."""

    architecture: Literal["topk", "batchtopk", "jumprelu"] = "topk"
    """`topk`: k features on every token. `batchtopk`: k on average over a batch. `jumprelu`: learned thresholds, drawn
    towards k on average."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """The residual stream after this layer (0-based). Default: `features.layer`, else the middle one."""
    expansion: Count = 16
    """Features per dimension of the residual stream."""
    d_sae: Count | None = None
    """Number of features. Default: `expansion` times the width of the residual stream."""
    k: Count = 32
    """Features that fire on a token."""
    tokens: Count = 20_000_000
    """Tokens to train on; a smaller corpus is read several times, a larger one in part."""
    batch_tokens: Count = 4096
    """Tokens per step."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Adam's learning rate."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    decay: Share = 0.2
    """Share of the steps, at the end, over which it falls to zero."""
    buffer_tokens: Count = 262_144
    """Activations that are held and mixed at a time. Each takes four bytes a dimension in float32."""
    corpus: CorpusConfig | None = None
    """What to read. Default: the usable prompts of `data`."""
    heldout_tokens: Count = 100_000
    """Tokens of documents that are left out of training, at most a tenth of the corpus, to measure on."""
    save_every: Annotated[Count, INCIDENTAL] = 500
    """Steps between checkpoints."""
    out: Annotated[str | None, INCIDENTAL] = None
    """Folder for the SAE; relative to the config file. Default: what `features.sae` names."""
    seed: int = 0
    """Seed of the weights, of the held-out documents, and of the order."""

    @model_validator(mode="after")
    def _amounts_fit(self) -> Self:
        if self.tokens < self.batch_tokens:
            raise ValueError(f"sae_training.tokens ({self.tokens}) is less than one sae_training.batch_tokens "
                             f"({self.batch_tokens})")
        if self.buffer_tokens < 2 * self.batch_tokens:
            raise ValueError(f"sae_training.buffer_tokens ({self.buffer_tokens}) must hold at least two "
                             f"sae_training.batch_tokens ({self.batch_tokens}), or nothing is mixed")
        if self.warmup + self.decay > 1:
            raise ValueError(f"sae_training.warmup ({self.warmup}) and sae_training.decay ({self.decay}) exceed the "
                             "whole training")
        return self


class ClustersConfig(Section):
    """Diversity: k-means over what the SAE sees."""

    k: Annotated[int, Field(ge=2)] | Literal["auto"] = 32
    """Number of clusters. `auto`: the most clusters whose borders do not depend on which half of the prompts is looked
    at (see `saerl_core.choose_k`); the curve is kept in the report."""
    max_k: Annotated[int, Field(ge=8)] = 256
    """The most clusters that `k: auto` considers; the fewest are 8."""
    dims: Count = 512
    """Width of the count-sketch in which k-means runs."""
    idf: bool = True
    """Weigh features by inverse document frequency: a common background tells prompts apart badly."""
    iterations: Count = 25
    """Upper bound on k-means iterations."""
    restarts: Count = 3
    """k-means runs; the best objective wins."""
    two_level_above: Count = 256
    """More clusters than this are found in two levels, in a fraction of the time: about sqrt(k) clusters first, each
    then divided in proportion to its size."""
    previous: Annotated[str | None, INCIDENTAL] = None
    """A manifest whose clusters are kept: prompts go to its centroids, and a cluster keeps its number from run to run.
    It must have been made with the same reader and SAE; its sketch and idf are used in place of `dims` and `idf`."""
    refit: Literal["always", "on_drift", "never"] = "on_drift"
    """When to cluster anew although there is a `previous` manifest."""
    max_drift: Share = 0.1
    """Beyond this drift, keeping the previous clusters is no longer fair: the mean similarity to the nearest centroid
    fell by this share, or the clusters' shares moved by this Jensen-Shannon divergence (0 to 1). From n prompts, chance
    alone gives a divergence of about k / 5.5n."""
    mini_batch_steps: Annotated[int, Field(ge=0)] = 0
    """Move kept centroids towards the new prompts by this many steps of mini-batch k-means. 0: they stay."""
    seed: Seed = 0
    """Seed of the sketch and of k-means."""

    @model_validator(mode="after")
    def _updates_need_a_start(self) -> Self:
        if self.mini_batch_steps and self.previous is None:
            raise ValueError(f"clusters.mini_batch_steps ({self.mini_batch_steps}) moves the clusters of a previous "
                             "manifest, but clusters.previous names none")
        return self


class ServerConfig(Section):
    """An OpenAI-compatible server (vLLM, SGLang, llama.cpp ...) that answers prompts."""

    url: Place
    """Where it is, for example `http://127.0.0.1:8000/v1`; `/v1` may be left out."""
    model: str
    """The model's name there. Labels are kept under this name: give another model another name."""
    api_key_env: Annotated[str | None, INCIDENTAL] = None
    """Name of the environment variable that holds the API key. The key itself is never written down."""
    concurrency: Annotated[Count, INCIDENTAL] = 32
    """Requests at once."""
    timeout_seconds: Annotated[float, Field(gt=0), INCIDENTAL] = 300.0
    """How long one request may take; then it is repeated."""
    retries: Annotated[int, Field(ge=0), INCIDENTAL] = 5
    """How often a request is repeated that timed out or was turned away for now, each time after a longer pause."""

    @field_validator("url")
    @classmethod
    def _no_secret_in_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http://HOST:PORT/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("must hold no credentials: labels.server.api_key_env names the variable that holds them")
        return url


class LabelsConfig(Section):
    """A small labelled subset, from which difficulty is learned."""

    source: Literal["rollouts", "server", "column", "level", "none"] = "rollouts"
    """`rollouts`: sample answers with the policy and verify them. `server`: the same, but `labels.server` answers.
    `column`: `data.columns.pass_rate`. `level`: the rank of `data.columns.level` stands in for pass rates. `none`."""
    server: ServerConfig | None = None
    """The server, for `labels.source: server`. It should serve the policy, or labels are another model's."""
    count: Annotated[int, Field(ge=20)] = 300
    """Number of prompts to label, spread over the clusters in proportion to their size."""
    samples: Count = 8
    """Answers sampled per prompt."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the most likely tokens that hold this share of the probability."""
    doubt_agreement: Share | None = None
    """A measured pass rate of 0 is doubtful where at least this share of the answers, and two of them, agree on one
    that the key calls wrong (0.5 is a start): a sign of a wrong key, or of a policy with a firm misconception, and in
    the toy far more often the latter (docs/LOG.md). `null`: never."""
    drop_doubtful: bool = False
    """Leave out prompts whose label is doubtful: a pass rate of 0 that may be the grader's failure. Either way such a
    label teaches the difficulty proxy nothing."""
    seed: int = 0
    """Seed of the choice and of the sampling."""


class DifficultyConfig(Section):
    """Difficulty: what 1 − pass rate is believed to be."""

    method: Literal["ridge", "elastic_net", "level", "length", "nll", "active_features", "activation_mass",
                    "none"] = "ridge"
    """Learned from labels: `ridge` (better when labels are few), `elastic_net` (the paper's proxy). Without labels:
    `level` (`data.columns.level`), `length` in tokens, `nll` (the policy's own surprise at the prompt),
    `active_features`, `activation_mass`. `none`: all prompts count as equally hard."""
    l1_ratio: Share = 0.5
    """ElasticNet's mix of L1 (1.0) and L2 (0.0)."""
    min_rows_per_feature: Count = 3
    """Features that fire on fewer labelled prompts are left out."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Cross-validation folds, for the held-out figures and for ElasticNet's penalty."""
    rewards: Annotated[str | None, INCIDENTAL] = None
    """Folder of an earlier training (`saerl-out/runs/NAME`): the rewards seen there correct the proxy's predictions."""
    prior_strength: Annotated[float, Field(gt=0)] = 8.0
    """How many seen answers a prediction is worth."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Weight of a seen answer for each step of training after it: the policy has moved since. 1: all count alike."""


CorruptionKind = Literal["garbled_words", "garbled_letters", "truncated", "question_removed", "numbers_removed"]


class QualityConfig(Section):
    """Quality: a probe that tells good prompts from bad ones, and a look at the answers."""

    method: Literal["logistic", "ridge", "mlp", "none"] = "logistic"
    """The probe on pooled features. `none`: keep everything."""
    labels: Literal["corruptions", "column", "rollouts"] = "corruptions"
    """What is bad. `corruptions`: copies of your prompts, damaged on purpose. `column`: `data.columns.quality` below
    0.5. `rollouts`: labelled prompts that were never solved (bad ones, and hard ones)."""
    count: Annotated[int, Field(ge=40)] = 400
    """Prompts from which corrupted copies are made, one each."""
    corruptions: Annotated[tuple[CorruptionKind, ...], Field(min_length=1)] = (
        "garbled_words", "garbled_letters", "truncated", "question_removed", "numbers_removed",
    )
    """Kinds of damage, in equal shares."""
    hidden: Count = 32
    """Width of the hidden layer of `mlp`."""
    threshold: Share = 0.5
    """Prompts that score lower are dropped."""
    max_drop_share: Share = 0.25
    """Never drop more than this share: the best of those below the threshold are kept, and the report says so."""
    drop_share: Share | None = None
    """In place of a threshold: drop this share, the worst."""
    min_auc: Annotated[float, Field(ge=0.5, le=1)] = 0.6
    """The gate: the 95% lower bound of the held-out AUC must exceed this, or nothing is filtered."""
    max_gap: Share = 0.2
    """The gate: training AUC may exceed held-out AUC by this much, or the probe merely memorises."""
    suspect_answers: Share = 0.0
    """Drop this share of the prompts: those whose answer the policy finds least likely, if its likelihoods tell right
    answers from wrong ones at all (the same gate). A hard prompt's answer is unlikely too. 0: off."""
    answer_format: str = "{answer}"
    """How the policy would write an answer, for its likelihood: for example `#### {answer}`."""
    seed: int = 0
    """Seed of the corruptions and of the split."""

    @field_validator("answer_format")
    @classmethod
    def _has_a_place(cls, text: str) -> str:
        if text.count("{answer}") != 1:
            raise ValueError("must hold {answer} once")
        return text


class CoverageConfig(Section):
    """Fewer prompts that still cover what the SAE sees, for whom the data set is too large."""

    budget: Count | None = None
    """Keep this many prompts, of each cluster in proportion to its size. Default: all."""
    method: Literal["facility_location", "log_det"] = "facility_location"
    """`facility_location`: every prompt has a similar one among those that are kept. `log_det`: those that are kept are
    unlike each other. Both chosen greedily."""
    seed: Seed = 0
    """Seed of the parts into which large clusters are split."""


class ScheduleConfig(Section):
    """Which prompts share a batch, and in which order the batches come.

    One set of parameters reaches the known strategies:

    | strategy | parameters |
    |---|---|
    | moderate mixing (the default) | `clusters_per_batch: 4, tail_mix: 0.25` |
    | extreme: one example a cluster | `clusters_per_batch: <batch_size>, tail_mix: 0` |
    | proportional sampling from every cluster | `clusters_per_batch: all, share: proportional, tail_mix: 0` |
    | uniform over clusters | `clusters_per_batch: all, tail_mix: 0` |
    | quartile stages | `stages: 4` |
    | global easy to hard | `clusters_per_batch: null, tail_mix: 0` |
    | hard to easy | `order: hard_first` |
    | easy prompts fade out | `fading: 0.5` |
    | shuffled (plain GRPO) | `clusters_per_batch: null, fading: 1, tail_mix: 0` |
    """

    batch_size: Count = 32
    """Prompts per batch. verl takes one batch a step."""
    clusters_per_batch: Count | Literal["all"] | None = 4
    """A batch is drawn from this many clusters, taking turns. `all`: from every cluster that still has prompts. `null`:
    clusters play no part."""
    share: Literal["equal", "proportional"] = "equal"
    """What each of these clusters gives to a batch: all the same number, or in proportion to its size."""
    tail_mix: Share = 0.25
    """Share of each batch's tail that is exchanged with the next batch."""
    order: Literal["easy_first", "hard_first"] = "easy_first"
    """Direction of difficulty, within each cluster and over the stages."""
    stages: Count = 1
    """Cut the prompts by difficulty into this many stages, one after the other, each drawn from clusters as above. 1:
    difficulty orders within clusters only."""
    fading: Share = 0.0
    """Blend each prompt's rank by difficulty with a random rank, with this weight. 0: strict order. 1: shuffled.
    Between: easy prompts thin out while hard ones come in (cf. E2H, arXiv 2506.06632)."""
    min_difficulty: Share = 0.0
    """Prompts predicted easier than this are left out: a group that is always solved has no advantage."""
    max_difficulty: Share = 1.0
    """Prompts predicted harder than this are left out: a group that is never solved has no advantage."""
    steps: Count | None = None
    """Number of batches. Default: all full batches of one epoch."""
    epochs: Count = 1
    """Passes over the kept prompts."""
    reshuffle_epochs: bool = False
    """Draw each epoch's batches anew, from the same prompts with another seed. Default: the same batches again."""
    seed: Seed = 0
    """Seed of the order of clusters, of ties, and of the random ranks."""

    @model_validator(mode="after")
    def _clusters_fit_batch(self) -> Self:
        if isinstance(self.clusters_per_batch, int) and self.clusters_per_batch > self.batch_size:
            raise ValueError(f"schedule.clusters_per_batch ({self.clusters_per_batch}) is larger than "
                             f"schedule.batch_size ({self.batch_size}): a batch cannot hold that many clusters")
        if self.min_difficulty > self.max_difficulty:
            raise ValueError(f"schedule.min_difficulty ({self.min_difficulty}) is larger than "
                             f"schedule.max_difficulty ({self.max_difficulty}): no prompt lies between")
        return self


class PolicyConfig(Section):
    """The model that is trained, and how its answers are judged."""

    model: Place
    """Folder or hub id of the policy."""
    verifier: str = "exact"
    """`exact`: the text after the last `#` marker (or in the last \\boxed{}) equals the answer, spelling apart.
    `math`: or has the same value, by math-verify. `import:package.module:function`: a function of yours,
    `(response: str, answer: str) -> bool | float` in [0, 1]; the module may lie beside this file."""
    max_prompt_tokens: Count = 512
    """Longer prompts are dropped: verl would cut them on the left with a mere warning."""
    max_response_tokens: Count = 512
    """Sampling stops here."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you ask for it here."""

    @field_validator("verifier")
    @classmethod
    def _verifier_is_spelled_right(cls, verifier: str) -> str:
        if not re.fullmatch(VERIFIER_PATTERN, verifier):
            raise ValueError("expected `exact`, `math`, or `import:package.module:function`")
        return verifier


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
    sae_training: SaeTrainingConfig | None = None
    """Used by `saerl train-sae` only."""
    base: Place = "."
    """Folder to which relative paths refer. Set by the reader of the file; rarely by hand."""

    @model_validator(mode="after")
    def _methods_have_their_columns(self) -> Self:
        columns = self.data.effective_columns()
        if self.difficulty.method == "level" and columns.level is None:
            raise ValueError("difficulty.method is 'level' but data.columns.level names none: name the column, or set "
                             "difficulty.method: ridge")
        if self.quality.method != "none" and self.quality.labels == "column" and columns.quality is None:
            raise ValueError("quality.labels is 'column' but data.columns.quality names none: name the column, or set "
                             "quality.labels: corruptions")
        if self.quality.method != "none" and self.quality.labels == "rollouts" and self.labels.source == "none":
            raise ValueError("quality.labels is 'rollouts' but labels.source is 'none': nothing is labelled")
        return self

    @model_validator(mode="after")
    def _labels_have_a_source(self) -> Self:
        if self.labels.source == "column" and self.data.effective_columns().pass_rate is None:
            raise ValueError("labels.source is 'column' but data.columns.pass_rate names none: "
                             "name the column, or set labels.source: rollouts")
        if self.labels.source == "level" and self.data.effective_columns().level is None:
            raise ValueError("labels.source is 'level' but data.columns.level names none: "
                             "name the column, or set labels.source: rollouts")
        if self.labels.source == "server" and self.labels.server is None:
            raise ValueError("labels.source is 'server' but labels.server is not set: give its url and model")
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error


def _first_line(error: ValidationError) -> str:
    """The first of pydantic's errors as one line; unknown keys first, for they explain missing ones."""
    details = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first, fields = details[0], [_field_of(item["type"], item["loc"]) for item in details]
    more = len(set(fields)) - 1
    suffix = f" (and {more} more)" if more else ""
    where = ".".join(fields[0])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}{suffix}"
    if first["type"] == "missing":
        return f"{where} is missing{suffix}"
    message = " or ".join(item["msg"].removeprefix("Value error, ") for item, field in zip(details, fields, strict=True)
                          if field == fields[0])  # a field of several types has an error for each
    if not where or (first["type"] == "value_error" and isinstance(first["input"], dict)):
        return message + suffix  # a check across fields, which names them itself
    value = repr(first["input"])
    return f"{where} = {value if len(value) <= 60 else value[:57] + '...'}: {message}{suffix}"


def _field_of(kind: str, loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The field that an error is about: without the types that pydantic tried there (`literal['auto']`)."""
    return tuple(str(part) for part in loc
                 if kind == "extra_forbidden" or isinstance(part, int) or part.isidentifier())


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
    return sorted(name for name in model.model_fields if name != "base")
