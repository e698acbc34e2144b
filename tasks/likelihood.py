"""Stage `likelihood`: prompts and answers → how likely the policy finds each, kept by key like a label."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from saerl_core import artifact, keyed
from saerl_core import likelihood as core
from saerl_core.artifact import ArtifactRef
from saerl_core.hashing import hash_value
from saerl_core.labels import draw
from saerl_core.rl import rollouts
from saerl_core.rl.rollouts import Policy
from tasks.caching import stage
from tasks.limits import device_slot
from tasks.progress import Progress
from tasks.read import load_usable

ROWS = "likelihood.parquet"
_SCHEMA = {"key": pl.String, "prompt_nll": pl.Float32, "answer_nll": pl.Float32, "wrong_nll": pl.Float32}
_CHUNK_PROMPTS = 512
"""What an interruption can lose."""
_TRIED_WRONG = 8
"""Of one prompt in so many, by lot, the answer is also made wrong, to see whether the model can tell."""


@stage("likelihood", core.VERSION)
def likelihood(root: Path, table: ArtifactRef, policy_path: Path, policy_hash: str, answer_format: str, seed: int,
               trust_remote_code: bool) -> ArtifactRef:
    """Read every usable prompt with the policy. The hash stands for the path in the cache key."""
    usable = load_usable(table)
    store = root / "likelihood" / f"{policy_hash[:12]}-{hash_value([core.VERSION, answer_format, seed])[:12]}"
    policy = cache(lambda: rollouts.load_policy(policy_path, trust_remote_code=trust_remote_code))

    def find(chunk: pl.DataFrame) -> pl.DataFrame:
        with device_slot(rollouts.default_device()):
            return _read(policy(), chunk, answer_format, seed)

    rows = keyed.complete(store, _SCHEMA, usable, find, chunk_rows=_CHUNK_PROMPTS,
                          progress=Progress("likelihood", "prompts"))
    with artifact.staging(root / "artifacts") as staged:
        rows.write_parquet(staged / ROWS)
        return artifact.seal(staged, "likelihood", {"stage": "likelihood", "policy": policy_hash})


def _read(policy: Policy, chunk: pl.DataFrame, answer_format: str, seed: int) -> pl.DataFrame:
    messages = chunk["messages"].to_list()
    answers = chunk["answer"].to_list()
    prompt_nll, answer_nll = core.nll(policy, messages,
                                      [answer_format.replace("{answer}", answer) for answer in answers])
    wrong = {row: text for row, (key, answer) in enumerate(zip(chunk["key"], answers, strict=True))
             if (lot := draw(key, seed)) % _TRIED_WRONG == 0 and (text := core.wrong_answer(answer, lot)) is not None}
    _, wrong_nll = core.nll(policy, [messages[row] for row in wrong],
                            [answer_format.replace("{answer}", text) for text in wrong.values()])
    spread = np.full(chunk.height, np.nan, dtype=np.float32)
    spread[list(wrong)] = wrong_nll
    return pl.DataFrame({"key": chunk["key"], "prompt_nll": prompt_nll, "answer_nll": answer_nll,
                         "wrong_nll": pl.Series(spread).fill_nan(None)}, schema=_SCHEMA)


def load_likelihood(ref: ArtifactRef) -> pl.DataFrame:
    """`prompt_nll`, `answer_nll` and, where one was tried, `wrong_nll` of each usable prompt, in nats per token."""
    return pl.read_parquet(ref.path / ROWS)
