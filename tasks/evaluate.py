"""Stage `evaluate`: a policy and the held-out set → how right its answers are, sampled and greedy."""

from __future__ import annotations

from pathlib import Path

import safetensors.numpy

from saerl_core import artifact
from saerl_core.artifact import ArtifactRef
from saerl_core.config import EvaluationConfig, PolicyConfig
from saerl_core.rl import verifiers
from saerl_core.rl.evaluate import Evaluation
from tasks.caching import stage
from tasks.heldout import load_chats
from tasks.limits import device_slot
from tasks.progress import Progress

VERSION = 2
_ANSWERS = "answers.safetensors"


@stage("evaluate", VERSION)
def evaluate(root: Path, policy_path: Path, policy_hash: str, heldout: ArtifactRef, base: Path, verifier: str,
             config: EvaluationConfig, policy: PolicyConfig) -> ArtifactRef:
    """Measure a policy on the first held-out problems. The hash stands for the path in the cache key, and the
    identity of `policy.verifier` for what lies in the folder `base`."""
    from saerl_core.rl import evaluate as core
    from saerl_core.rl import rollouts

    messages, answers = load_chats(heldout, config.prompts)
    with device_slot(rollouts.default_device()):
        found = core.evaluate(policy_path, messages, answers, config, score=verifiers.load(policy, base).score,
                              max_response_tokens=policy.max_response_tokens,
                              trust_remote_code=policy.trust_remote_code, progress=Progress("evaluate", "problems"))
    with artifact.staging(root / "artifacts") as staged:
        (staged / _ANSWERS).write_bytes(safetensors.numpy.save({"sampled": found.sampled, "greedy": found.greedy}))
        header = {"stage": "evaluate", "policy": policy_hash, "problems": len(answers)}
        return artifact.seal(staged, "evaluation", header)


def load_evaluation(ref: ArtifactRef) -> Evaluation:
    """What `evaluate` found."""
    arrays = safetensors.numpy.load_file(ref.path / _ANSWERS)
    return Evaluation(sampled=arrays["sampled"], greedy=arrays["greedy"])
