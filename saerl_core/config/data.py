"""Sections `data` and `hygiene`: which prompts, how they are laid out, and what counts as a copy."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from saerl_core.config.section import INCIDENTAL, Place, Section


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
    """Column names, where no preset fits, or where it fits but for some."""
    answer_pattern: str | None = None
    """A regular expression; its group is the answer (`Answer: (.+)$`), of several the first that matches. Default: the
    preset's, if it has one and its answer column is used."""

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in(cls, tree: Any) -> Any:
        """Here and at no other place, so that a config which was written out and read again says the same."""
        if not isinstance(tree, dict) or tree.get("preset") not in PRESETS:
            return tree
        preset, given = PRESETS[tree["preset"]], tree.get("columns", {})
        if isinstance(given, ColumnsConfig):
            given = given.model_dump(exclude_unset=True)
        if not isinstance(given, dict):
            return tree
        filled = {**tree, "columns": {**preset.columns.model_dump(), **given}}
        if tree.get("answer_pattern") is None and "answer" not in given:
            filled["answer_pattern"] = preset.answer_pattern
        return filled

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
