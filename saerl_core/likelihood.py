"""How likely a causal LM finds a prompt, and its answer: negative log-likelihood in nats per token.

Legend: B prompts in a batch, T tokens (padded), V vocabulary.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

import numpy as np
import torch

from saerl_core.extract import batch_by_length
from saerl_core.rl.rollouts import Message, Policy, encode_prompts

VERSION = 2
_TOKENS_PER_BATCH = 2048
"""The logits of a batch are [tokens, vocabulary]: 1.2 GB in float32 for a vocabulary of 150,000."""
_DIGIT = re.compile(r"\d")


@torch.inference_mode()
def nll(policy: Policy, messages: Sequence[Sequence[Message]], answers: Sequence[str],
        progress: Callable[[int, int], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean negative log-likelihood of each prompt's tokens, and of its answer's tokens given the prompt.

    Args:
        policy: A causal LM.
        messages: n chats, rendered with the model's chat template.
        answers: n answers, appended where the assistant begins to speak.
        progress: Called with prompts done and prompts in all.

    Returns:
        float32 [n] twice. The first token of a prompt is not predicted, so it does not count.
    """
    prompts = encode_prompts(policy, messages)
    tails = [policy.tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
    whole = [prompt + tail for prompt, tail in zip(prompts, tails, strict=True)]
    found = np.zeros((2, len(whole)), dtype=np.float32)
    done = 0
    for batch in batch_by_length([len(ids) for ids in whole], _TOKENS_PER_BATCH):
        length_B = torch.tensor([len(whole[i]) for i in batch])
        begins_B = torch.tensor([len(prompts[i]) for i in batch])
        ids_BT = torch.full((len(batch), int(length_B.max())), policy.pad_id)
        for row, i in enumerate(batch):
            ids_BT[row, : len(whole[i])] = torch.tensor(whole[i])
        ids_BT = ids_BT.to(policy.model.device)
        logits_BTV = policy.model(input_ids=ids_BT, use_cache=False).logits[:, :-1]  # causal: padding lies to the right
        nll_BT = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten(),
                                                   reduction="none").view(len(batch), -1).cpu()
        place_BT = torch.arange(1, ids_BT.shape[1]).expand_as(nll_BT)
        in_prompt_BT = place_BT < begins_B[:, None]
        in_answer_BT = ~in_prompt_BT & (place_BT < length_B[:, None])
        for part, mask_BT in enumerate((in_prompt_BT, in_answer_BT)):
            found[part, batch] = ((nll_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)).numpy()
        done += len(batch)
        if progress is not None:
            progress(done, len(whole))
    return found[0], found[1]


def wrong_answer(answer: str, seed: int) -> str | None:
    """The answer with one digit changed to another; None where it has none."""
    digits = list(_DIGIT.finditer(answer))
    if not digits:
        return None
    rng = random.Random(seed)
    place = rng.choice(digits).start()
    other = rng.choice([digit for digit in "123456789" if digit != answer[place]])
    return answer[:place] + other + answer[place + 1 :]
