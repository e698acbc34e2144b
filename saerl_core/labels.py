"""A small labelled subset: which prompts to label, and what was measured of each, kept for ever.

Both are tied to a prompt's key, not to its place. So a prompt set that grows keeps nearly all of its labels, and a
labelling that was interrupted goes on where it stopped.

A label is a pass rate, or its stand-in in [0, 1]. A pass rate of exactly 0 says that the prompt is too hard, or that
the grader failed: a wrong key, or a key in a spelling that the grader does not read. Where a sign of that is seen the
label is doubtful, and nothing is learned from it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from scipy.stats import rankdata

from saerl_core.apportion import apportion
from saerl_core.hashing import hash_value

VERSION = 2

MEASURED = {
    "key": pl.String,
    "pass_rate": pl.Float64,
    "samples": pl.Int64,
    "majority_share": pl.Float64,
    "majority_correct": pl.Boolean,
}
"""What is kept of a prompt's sampled answers: mean reward, number of answers, the share that states the most frequent
answer, and whether that one is right."""

_MARKUP = re.compile(
    r"(?<!\\)\$|\\[(\[]|\\boxed"  # math delimiters within the reference
    r"|\\!|\{,\}|[0-9](?:,|\\,)[0-9]{3}(?![0-9])"  # thousands separators
    r"|\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\b"
)


def draw(key: str, seed: int) -> int:
    """A prompt's lot: an integer that depends on its key and the seed alone. The lowest lots are chosen."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big")


def choose(keys: Sequence[str], clusters: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows to label: a stratified sample, every cluster in proportion to its size.

    Args:
        keys: n row keys.
        clusters: int [n], cluster of each prompt.
        count: Rows wanted; all rows where there are fewer.
        seed: Seed of the lots.

    Returns:
        int64 [min(count, n)], ascending. Cluster shares are exact up to rounding (largest remainder).
    """
    count = min(count, len(clusters))
    numbers, sizes = np.unique(clusters, return_counts=True)
    quota = apportion(count, sizes)
    lots = np.array([draw(key, seed) for key in keys], dtype=np.uint64)
    chosen = []
    for number, size in zip(numbers, quota, strict=True):
        members = np.flatnonzero(clusters == number)
        chosen.append(members[np.argsort(lots[members], kind="stable")[:size]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def shuffled(found: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The same labels, permuted among the same prompts: a control, from which nothing can be learned.

    Args:
        found: A column `row`, which stays; all other columns move together.
        seed: Seed of the permutation.
    """
    order = random.Random(f"shuffle/{seed}").sample(range(found.height), found.height)
    return found.with_columns(found.select(pl.exclude("row"))[order])


def judge(keys: Sequence[str], responses: Sequence[Sequence[str]], answers: Sequence[str],
          score: Callable[[str, str], float], stated: Callable[[str], str | None]) -> pl.DataFrame:
    """Judge the sampled answers to n prompts.

    Args:
        keys: n row keys.
        responses: The answers to each prompt, at least one.
        answers: n reference answers.
        score: (response, reference) → reward in [0, 1].
        stated: Response → the answer that it states, in one spelling.

    Returns:
        A frame of `MEASURED`, n rows.
    """
    rows = []
    for key, texts, answer in zip(keys, responses, answers, strict=True):
        scores = [score(text, answer) for text in texts]
        found = [stated(text) for text in texts]
        counted = Counter(text for text in found if text is not None).most_common(1)
        majority, votes = counted[0] if counted else (None, 0)
        rows.append({
            "key": key,
            "pass_rate": sum(scores) / len(scores),
            "samples": len(scores),
            "majority_share": votes / len(scores),
            "majority_correct": votes > 0 and scores[found.index(majority)] > 0,
        })
    return pl.DataFrame(rows, schema=MEASURED)


def doubt_measured(measured: pl.DataFrame, agreement: float) -> np.ndarray:
    """Zeros whose samples agree on an answer that is not the key.

    Args:
        measured: A frame of `MEASURED`, n rows.
        agreement: Share of a prompt's samples that must agree; two of them always must.

    Returns:
        bool [n].
    """
    agree = (pl.col("majority_share") >= agreement) & (pl.col("majority_share") * pl.col("samples") > 1.5)
    doubtful = (pl.col("pass_rate") == 0) & agree & ~pl.col("majority_correct")
    return measured.select(doubtful).to_series().to_numpy()


def doubt_given(pass_rate: np.ndarray, answers: Sequence[str]) -> np.ndarray:
    """Zeros that came with the data, whose reference is spelled as a literal grader misreads it.

    Such a reference holds markup beside the answer: `$5$`, `\\[98\\]`, `12,\\!650`, `400,000`, `\\text{4 hours}`.

    Args:
        pass_rate: float [n].
        answers: n reference answers.

    Returns:
        bool [n].
    """
    return (pass_rate == 0) & np.array([_MARKUP.search(answer) is not None for answer in answers], dtype=bool)


def rate_from_level(level: np.ndarray) -> np.ndarray:
    """A stand-in for the pass rate: 1 − the level's mid-rank among all levels, as a share.

    Args:
        level: float [n], higher = harder, on any scale.

    Returns:
        float [n] strictly between 0 and 1; equal levels have equal rates, and the mean is 1/2.
    """
    return 1 - (rankdata(level) - 0.5) / len(level)


def store_name(source: str, sampling: dict[str, object]) -> str:
    """Folder name of what one model's answers were measured to be, sampled and verified in one way.

    Args:
        source: Hash of the model, or of its name where a server has it.
        sampling: JSON-able values: everything that the answers and their verdicts depend on.
    """
    return f"{source[:12]}-{hash_value({'version': VERSION, **sampling})[:12]}"
