"""verl's single-turn agent loop, for every chat template and at a fraction of the cost.

verl picks its handling of turn boundaries by model type, and for a Qwen type it insists on a token `<|im_end|>`, which
a policy with a template of its own need not have. A single turn has no boundary to handle, so the generic builder
serves where the special one cannot be made. And verl makes a new loop for each answer; a loop holds nothing that an
answer changes, so one per process is enough. And a held-out row may ask to be answered greedily, beside others that
are sampled, where verl has one setting for a whole validation.
"""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

SINGLE_TURN = "saerl_single_turn"
"""Its name in verl's configuration."""
GREEDY = {"temperature": 0, "top_p": 1.0, "top_k": -1}


def asks_greedily(row: dict[str, Any]) -> bool:
    """Whether a row's `extra_info` asks for the likeliest answer."""
    return bool((row.get("extra_info") or {}).get("greedy"))


class SingleTurn(SingleTurnAgentLoop):
    """One question, one answer; greedily where the row asks for it."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **row: Any) -> Any:
        params = sampling_params | GREEDY if asks_greedily(row) else sampling_params
        # verl's decorator hides from type checkers that the method is there
        return await super().run(params, priority, **row)  # pyright: ignore


_loop: tuple[Any, SingleTurn] | None = None  # the client it asks for answers, and the loop


def single_turn(*, server_manager: Any, tokenizer: Any, hf_model_type: str | None = None, **rest: Any) -> Any:
    """What verl instantiates for each answer (`_target_` of its agent loop configuration)."""
    global _loop
    if _loop is None or _loop[0] is not server_manager:
        model_type = supported_model_type(tokenizer, hf_model_type)
        loop = SingleTurn(
            server_manager=server_manager, tokenizer=tokenizer, hf_model_type=model_type, **rest
        )
        _loop = server_manager, loop
    return _loop[1]


def supported_model_type(tokenizer: Any, hf_model_type: str | None) -> str | None:
    """The model type, or None (verl's generic handling) where this tokenizer lacks what the type's handling needs."""
    try:
        create_continuous_token_builder(tokenizer, hf_model_type=hf_model_type)
    except ValueError:
        return None
    return hf_model_type
