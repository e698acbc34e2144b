"""Sections of the three properties, of the labels they are learned from, and of the order they give."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from saerl_core.config.section import INCIDENTAL, Count, Place, Section, Seed, Share


class ClustersConfig(Section):
    """Diversity: k-means over what the SAE sees."""

    k: Annotated[int, Field(ge=2)] | Literal["auto"] = 32
    """Number of clusters. `auto`: the most clusters whose borders do not depend on which half of the prompts is looked
    at (see `saerl_core.choose_k`); the curve is kept in the report."""
    max_k: Annotated[int, Field(ge=8)] = 256
    """The most clusters that `k: auto` considers; the fewest are 8."""
    dims: Count = 512
    """Width of the count-sketch in which k-means runs."""
    weights: Literal["idf", "deviation", "none"] = "idf"
    """What a feature counts. `idf`: inverse document frequency, for a common background tells prompts apart badly.
    `deviation`: one over its standard deviation over the prompts, for features that fire everywhere
    (`features.encoder: residual`), some of which are far larger than others. `none`: all count alike."""
    iterations: Count = 25
    """Upper bound on k-means iterations."""
    restarts: Count = 3
    """k-means runs; the best objective wins."""
    two_level_above: Count = 256
    """More clusters than this are found in two levels, in a fraction of the time: about sqrt(k) clusters first, each
    then divided in proportion to its size."""
    previous: Annotated[str | None, INCIDENTAL] = None
    """A manifest whose clusters are kept: prompts go to its centroids, and a cluster keeps its number from run to run.
    It must have been made with the same reader and SAE; its sketch and weights are used in place of `dims` and
    `weights`."""
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
    shuffle: bool = False
    """A control: pass rates are permuted among the labelled prompts, so that nothing can be learned from them."""
    seed: Seed = 0
    """Seed of the choice, of the sampling, and of `shuffle`."""


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

    method: Literal["logistic", "ridge", "mlp", "random", "none"] = "logistic"
    """The probe on pooled features. `random`: no probe, scores are drawn by lot, and `drop_share` says how many go: a
    control, a filter of the same size that knows nothing. `none`: keep everything."""
    labels: Literal["corruptions", "column", "rollouts"] = "corruptions"
    """What is bad. `corruptions`: copies of your prompts, damaged on purpose. `column`: `data.columns.quality` below
    0.5. `rollouts`: labelled prompts that were never solved (bad ones, and hard ones)."""
    count: Annotated[int, Field(ge=40)] = 400
    """Prompts from which corrupted copies are made, one each."""
    shuffle_labels: bool = False
    """A control: good and bad are permuted among the known prompts, so that nothing can be learned from them."""
    corruptions: Annotated[tuple[CorruptionKind, ...], Field(min_length=1)] = (
        "garbled_words", "garbled_letters", "truncated", "question_removed", "numbers_removed",
    )
    """Kinds of damage, in equal shares."""
    hidden: Count = 32
    """Width of the hidden layer of `mlp`."""
    threshold: Share = 0.5
    """Prompts that score lower are dropped."""
    max_good_dropped: Share = 0.15
    """The threshold is lowered until at most this share of good held-out prompts scores below it. With corruptions,
    your own rows pass for good, and those that are bad in truth score low: less than their share lets bad ones stay."""
    max_drop_share: Share = 0.25
    """Never drop more than this share: the best of those below the threshold are kept, and the report says so."""
    drop_share: Share | None = None
    """In place of a threshold: drop this share, the worst."""
    min_auc: Annotated[float, Field(ge=0.5, le=1)] = 0.6
    """The gate: the 95% lower bound of the held-out AUC must exceed this, or nothing is filtered."""
    max_gap: Share = 0.2
    """The gate: training AUC may exceed held-out AUC by this much, or the probe merely memorises."""
    suspect_answers: Share = 0.0
    """Drop this share of the prompts, those whose answer key is most likely wrong, if wrong keys that the stage makes
    itself are told from your own at all (the same gate). 0: off."""
    suspect_by: Literal["agreement", "likelihood"] = "agreement"
    """How a key is judged. `agreement`: the policy answers every prompt that is still in the running, and a prompt is
    suspect whose rewards would pull the policy against its like; only prompts that are solved now and then can be
    judged, and `suspect_answers` is a share of these. `likelihood`: the policy's likelihood of the bare answer (cheap,
    but a hard prompt's answer is unlikely too)."""
    agreement_samples: Annotated[int, Field(ge=2)] = 8
    """Answers sampled to each prompt, for `agreement`; drawn as `labels.temperature` and `labels.top_p` say."""
    neighbours: Count = 30
    """How many other prompts a prompt is compared with, for `agreement`."""
    answer_format: str = "{answer}"
    """How the policy would write an answer, for its likelihood: for example `#### {answer}`."""
    seed: Seed = 0
    """Seed of the corruptions, of the split, and of what is drawn by lot."""

    @field_validator("answer_format")
    @classmethod
    def _has_a_place(cls, text: str) -> str:
        if text.count("{answer}") != 1:
            raise ValueError("must hold {answer} once")
        return text

    @model_validator(mode="after")
    def _lots_have_a_share(self) -> Self:
        if self.method == "random" and self.drop_share is None:
            raise ValueError("quality.method is 'random' but quality.drop_share is not set: say what share is dropped")
        return self

    @property
    def fitted(self) -> bool:
        """True where a probe is fitted."""
        return self.method not in ("random", "none")

    @property
    def keys_by(self) -> Literal["agreement", "likelihood"] | None:
        """How answer keys are judged; None where they are not."""
        return self.suspect_by if self.suspect_answers else None

    @property
    def damages(self) -> bool:
        """True where a probe is fitted on damaged copies."""
        return self.fitted and self.labels == "corruptions"


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
    | a few clusters a batch, in random order (the default) | `clusters_per_batch: 4, tail_mix: 0.25, order: random` |
    | the paper's: the same, easy to hard ("moderate mixing") | `order: easy_first` |
    | extreme: one example a cluster | `clusters_per_batch: <batch_size>, tail_mix: 0` |
    | proportional sampling from every cluster | `clusters_per_batch: all, share: proportional, tail_mix: 0` |
    | uniform over clusters | `clusters_per_batch: all, tail_mix: 0` |
    | quartile stages | `order: easy_first, stages: 4` |
    | global easy to hard | `clusters_per_batch: null, tail_mix: 0, order: easy_first` |
    | hard to easy | `order: hard_first` |
    | easy prompts fade out | `order: easy_first, fading: 0.5` |
    | shuffled (plain GRPO) | `clusters_per_batch: null, tail_mix: 0` |
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
    order: Literal["random", "easy_first", "hard_first"] = "random"
    """The order within each cluster, and of the stages. `random`: difficulty decides what is left out, not what comes
    first. `easy_first`: the paper's curriculum, which did worse than chance on the toy (docs/experiment.md)."""
    stages: Count = 1
    """Cut the prompts by difficulty into this many stages, one after the other, each drawn from clusters as above. 1:
    difficulty orders within clusters only."""
    fading: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Blend each prompt's rank by difficulty with a random rank, with this weight. 0: strict order. Above: easy prompts
    thin out while hard ones come in (cf. E2H, arXiv 2506.06632)."""
    min_difficulty: Share = 0.0
    """Prompts predicted easier than this are left out: a group that is always solved has no advantage."""
    max_difficulty: Share = 1.0
    """Prompts predicted harder than this are left out: a group that is never solved has no advantage."""
    steps: Count | None = None
    """Number of batches, at most. Default: all full batches of all epochs."""
    epochs: Count = 1
    """Passes over the kept prompts."""
    reshuffle_epochs: bool = False
    """Draw each epoch's batches anew, from the same prompts with another seed. Default: the same batches again."""
    seed: Seed = 0
    """Seed of the order of clusters, of ties, and of the random ranks."""

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        if isinstance(self.clusters_per_batch, int) and self.clusters_per_batch > self.batch_size:
            raise ValueError(f"schedule.clusters_per_batch ({self.clusters_per_batch}) is larger than "
                             f"schedule.batch_size ({self.batch_size}): a batch cannot hold that many clusters")
        for field, idle in (("stages", 1), ("fading", 0.0)):
            if self.order == "random" and (value := getattr(self, field)) != idle:
                raise ValueError(f"schedule.{field} = {value} needs an order by difficulty, but schedule.order is "
                                 "'random': set it to easy_first or hard_first")
        if self.min_difficulty > self.max_difficulty:
            raise ValueError(f"schedule.min_difficulty ({self.min_difficulty}) is larger than "
                             f"schedule.max_difficulty ({self.max_difficulty}): no prompt lies between")
        return self
