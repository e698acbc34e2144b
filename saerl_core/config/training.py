"""Sections `policy`, `train` and `evaluation`: the verl job, and how its result is measured."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from saerl_core.config.section import Count, Place, Section, Seed
from saerl_core.rl.verl_side.saerl_judge import PATTERN as VERIFIER_PATTERN


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
    """Sequences per forward-backward pass and GPU; divides those of a step on a GPU."""
    save_every: Count = 10
    """Steps between checkpoints."""
    test_every: Count = 10
    """Steps between verl's own validations on the held-out set."""
    test_prompts: Count = 256
    """Held-out prompts in each of these validations (the first ones)."""
    test_samples: Count = 1
    """Answers per prompt in each of these validations, at temperature 1."""
    test_greedy: bool = False
    """Answer each of them greedily, too."""
    test_first: bool = False
    """Validate before the first step, too, and count the job as done only when its last step has been validated."""
    gpus: Count = 1
    """GPUs per node."""
    nodes: Count = 1
    """Ray nodes."""
    tensor_parallel: Count = 1
    """vLLM's tensor parallelism."""
    python: str | None = None
    """Interpreter of the environment that has verl. Default: this one."""
    seed: Seed = 0
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
    seed: Seed = 0
    """Seed of the sampling."""
