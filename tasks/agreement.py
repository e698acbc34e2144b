"""Stage `agreement`: prompts that may be trained on → which of them pull the policy against their like.

The policy answers each of them a few times; what its rewards would teach is compared with what other prompts teach
(`saerl_core.agreement`). Pulls are kept by key, like labels; how they agree is found anew, for it depends on all.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from saerl_core import agreement as core
from saerl_core import artifact, keyed, labels
from saerl_core.artifact import ArtifactRef
from saerl_core.config import LabelsConfig, PolicyConfig, QualityConfig, ScheduleConfig
from saerl_core.quality import low_quality
from saerl_core.rl import rollouts, verifiers
from saerl_core.rl.rollouts import Policy
from saerl_core.rl.verifiers import Verifier
from saerl_core.schedule import outside_band
from tasks.caching import stage
from tasks.limits import device_slot
from tasks.progress import Progress
from tasks.read import load_usable
from tasks.scores import load_scores

ROWS = "agreement.parquet"
_KEPT = {"key": pl.String, "own": pl.Binary, "wrong": pl.Binary}
"""What is kept of a prompt: its pull, and the pull of a wrong key made of its answers (float16; null where rewards do
not differ)."""
_CHUNK_PROMPTS = 100
"""What an interruption can lose."""


@stage("agreement", core.VERSION)
def agreement(root: Path, table: ArtifactRef, difficulty: ArtifactRef, quality: ArtifactRef, policy_path: Path,
              policy_hash: str, base: Path, verifier: str, config: QualityConfig, sampled: LabelsConfig,
              policy: PolicyConfig, schedule: ScheduleConfig) -> ArtifactRef:
    """Sample answers to what quality and difficulty leave, and compare their pulls.

    `verifier` is the identity of `policy.verifier`, found from the folder `base`; `sampled` says how answers are drawn.
    """
    rows = candidates(difficulty, quality, config, schedule)
    chosen = load_usable(table)[rows]
    found = _measured(chosen, root / "agreement", policy_path, policy_hash, verifiers.load(policy, base), config,
                      sampled, policy)
    differ = found["own"].is_not_null().to_numpy()
    own, wrong = (_unpack(found.filter(differ)[column]) for column in ("own", "wrong"))
    agree, made_wrong = np.full((2, len(rows)), np.nan)
    agree[differ] = core.agreement(own, own, config.neighbours)
    made_wrong[differ] = np.where(wrong.any(1), core.agreement(wrong, own, config.neighbours), np.nan)
    with artifact.staging(root / "artifacts") as staged:
        pl.DataFrame({"row": rows, "agreement": agree, "made_wrong": made_wrong},
                     nan_to_null=True).write_parquet(staged / ROWS)
        return artifact.seal(staged, "agreement", {"stage": "agreement", "policy": policy_hash, "rows": len(rows)})


def candidates(difficulty: ArtifactRef, quality: ArtifactRef, config: QualityConfig,
               schedule: ScheduleConfig) -> np.ndarray:
    """Rows (among the usable prompts) that neither the quality probe nor the band of difficulty drops."""
    hard, difficulty_report = load_scores(difficulty)
    good, quality_report = load_scores(quality)
    dropped = np.zeros(len(hard), dtype=bool)
    if quality_report["used"]:
        dropped |= low_quality(good, quality_report["threshold"], config)[0]
    if difficulty_report["used"]:
        for outside in outside_band(hard, schedule).values():
            dropped[outside] = True
    return np.flatnonzero(~dropped)


def load_agreement(ref: ArtifactRef) -> pl.DataFrame:
    """`row` (among the usable prompts), and, where the rewards of its answers differ, `agreement` in [-1, 1] and
    `made_wrong`, the agreement of a wrong key made of the same answers."""
    return pl.read_parquet(ref.path / ROWS)


def _measured(chosen: pl.DataFrame, stores: Path, policy_path: Path, policy_hash: str, verifier: Verifier,
              config: QualityConfig, sampled: LabelsConfig, policy: PolicyConfig) -> pl.DataFrame:
    """A row of `_KEPT` for each chosen prompt."""
    store = stores / labels.store_name(policy_hash, {
        "agreement": core.VERSION, "samples": config.agreement_samples, "seed": config.seed,
        "temperature": sampled.temperature, "top_p": sampled.top_p, "verifier": verifier.identity,
        "max_response_tokens": policy.max_response_tokens})
    loaded = cache(lambda: rollouts.load_policy(policy_path, trust_remote_code=policy.trust_remote_code))

    def find(chunk: pl.DataFrame) -> pl.DataFrame:
        with device_slot(rollouts.default_device()):
            return _read(loaded(), chunk, verifier, config, sampled, policy)

    return keyed.complete(store, _KEPT, chosen, find, chunk_rows=_CHUNK_PROMPTS,
                          progress=Progress("agreement", "prompts"))


def _read(policy: Policy, chunk: pl.DataFrame, verifier: Verifier, config: QualityConfig, sampled: LabelsConfig,
          asked: PolicyConfig) -> pl.DataFrame:
    """Sample, judge, and take the pulls of those prompts whose rewards differ."""
    messages = chunk["messages"].to_list()
    texts = rollouts.sample_texts(policy, messages, samples=config.agreement_samples, temperature=sampled.temperature,
                                  top_p=sampled.top_p, max_response_tokens=asked.max_response_tokens, seed=config.seed)
    rewards = np.array([[verifier.score(text, answer) for text in answers]
                        for answers, answer in zip(texts, chunk["answer"].to_list(), strict=True)], dtype=np.float64)
    own: list[bytes | None] = [None] * len(texts)
    wrong: list[bytes | None] = [None] * len(texts)
    differ = np.flatnonzero(rewards.min(1) < rewards.max(1))
    if len(differ):
        pulls = core.answer_pulls(policy, [messages[row] for row in differ], [texts[row] for row in differ])
        for row, pulls_KS in zip(differ.tolist(), pulls, strict=True):
            stated = [verifiers.stated_answer(text) for text in texts[row]]
            other = core.wrong_rewards(stated, rewards[row])
            own[row] = _pack(core.pull(pulls_KS, rewards[row]))
            wrong[row] = _pack(core.pull(pulls_KS, other)) if other is not None else None
    return pl.DataFrame({"key": chunk["key"], "own": own, "wrong": wrong}, schema=_KEPT)


def _pack(pull: np.ndarray | None) -> bytes | None:
    return None if pull is None else pull.astype(np.float16).tobytes()


def _unpack(column: pl.Series) -> np.ndarray:
    """float32 [n, S], zeros where there is nothing."""
    nothing = bytes(2 * core.SKETCH)
    packed = b"".join(nothing if pull is None else pull for pull in column.to_list())
    return np.frombuffer(packed, dtype=np.float16).astype(np.float32).reshape(-1, core.SKETCH)
