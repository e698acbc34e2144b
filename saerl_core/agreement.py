"""Do prompts agree on what to reward? A wrong answer key pulls the policy the other way than its neighbours do.

GRPO moves a policy by what sets a prompt's rewarded answers apart from the others. Two prompts that hold the same
difficulty reward the same choices in the same contexts, so their pulls point the same way; where one key of the two is
wrong, they point against each other. A prompt's pull is taken at the output layer, where it is a sum over tokens of
(chosen token - what the policy expected) times (the context's hidden state), weighted by advantage: the gradient of the
policy's log-likelihoods with respect to its unembedding. It is kept as a random sketch of fixed size (a projection on
both sides), which preserves cosines (Johnson & Lindenstrauss 1984; gradients of examples, sketched and compared, find
training data that matter in Park et al. 2023, "TRAK", and Xia et al. 2024, "LESS").

Legend: B answers in a batch, T tokens (padded; those of the answers alone, once they are cut out), V vocabulary,
D residual width, M side of a sketch, S = M x M, the sketch, K answers to one prompt, N prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from saerl_core.extract import batch_by_length, pad
from saerl_core.rl.rollouts import Message, Policy, encode_prompts

VERSION = 1
SKETCH_SIDE = 32
SKETCH = SKETCH_SIDE**2
_TOKENS_PER_BATCH = 2048
"""The logits of a batch are [tokens, vocabulary]: 1.2 GB in float32 for a vocabulary of 150,000."""
_BLOCK = 256
"""Prompts that are compared with all others at once."""


@torch.inference_mode()
def answer_pulls(policy: Policy, messages: Sequence[Sequence[Message]], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """What making an answer likelier would change, for every answer to every prompt.

    Args:
        policy: A causal LM whose output layer is linear.
        messages: n chats.
        texts: k answers to each of them, as text.

    Returns:
        float32 [n, k, S]: sketched gradients of the answers' log-likelihoods with respect to the unembedding, hidden
        states taken with length 1. Depends on the policy and the answers alone, up to rounding.
    """
    model, device = policy.model, policy.model.device
    prompts = encode_prompts(policy, messages)
    each = len(texts[0])
    ids = [(prompt, policy.tokenizer.encode(text, add_special_tokens=False))
           for prompt, answers in zip(prompts, texts, strict=True) for text in answers]
    head = model.get_output_embeddings()
    left_VM, right_DM = (_directions(size, device) for size in head.weight.shape)
    found = np.zeros((len(ids), SKETCH), dtype=np.float32)
    for batch in batch_by_length([len(prompt) + len(answer) for prompt, answer in ids], _TOKENS_PER_BATCH):
        ids_BT, _ = pad([ids[i][0] + ids[i][1] for i in batch], device)
        h_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        begin_B, length_B = (torch.tensor([len(ids[i][part]) for i in batch], device=device) for part in (0, 1))
        step_T = torch.arange(int(length_B.max()), device=device)
        place_BT = (begin_B[:, None] + step_T).clamp(max=ids_BT.shape[1] - 1)
        h_BTD = h_BTD.gather(1, (place_BT - 1)[..., None].expand(-1, -1, h_BTD.shape[-1]))  # what chose the token
        said_BTM = left_VM[ids_BT.gather(1, place_BT)] - head(h_BTD).float().softmax(-1) @ left_VM
        context_BTM = torch.nn.functional.normalize(h_BTD.float(), dim=-1) @ right_DM
        said_BTM = said_BTM * (step_T < length_B[:, None])[..., None]
        found[batch] = (said_BTM.transpose(1, 2) @ context_BTM).flatten(1).cpu().numpy()
    return found.reshape(len(texts), each, SKETCH)


def _directions(size: int, device: torch.device) -> torch.Tensor:
    """[size, M] of random signs, the same for ever."""
    generator = torch.Generator().manual_seed(size)
    signs = torch.randint(0, 2, (size, SKETCH_SIDE), generator=generator, dtype=torch.int8)
    return (2.0 * signs - 1.0).to(device) / SKETCH_SIDE**0.5


def pull(pulls_KS: np.ndarray, rewards_K: np.ndarray) -> np.ndarray | None:
    """Where a group of answers pulls the policy: float32 [S] of length 1; None where rewards do not differ."""
    advantage_K = rewards_K - rewards_K.mean()
    pull_S = advantage_K @ pulls_KS
    length = float(np.linalg.norm(pull_S))
    return (pull_S / length).astype(np.float32) if advantage_K.any() and length > 0 else None


def wrong_rewards(stated: Sequence[str | None], rewards_K: np.ndarray) -> np.ndarray | None:
    """The rewards that a wrong key would give: that of the most frequent answer that was not rewarded.

    Args:
        stated: The final answer of each of k responses, in one spelling.
        rewards_K: Their rewards.

    Returns:
        float64 [k], 1 where that answer was given; None where none was.
    """
    others = [answer for answer, reward in zip(stated, rewards_K, strict=True) if answer is not None and reward <= 0]
    if not others:
        return None
    most = max(sorted(set(others)), key=others.count)
    return np.array([answer == most for answer in stated], dtype=np.float64)


def agreement(pulls_NS: np.ndarray, among_NS: np.ndarray, neighbours: int) -> np.ndarray:
    """How far each prompt's nearest neighbours pull the same way as it does.

    Args:
        pulls_NS: A pull of each of n prompts, of length 1.
        among_NS: The pulls of the same prompts with which they are compared; a prompt is no neighbour of its own.
        neighbours: How many others count: those whose pulls lie nearest to the same line, along it or against it.

    Returns:
        float64 [n] in [-1, 1]: the neighbours' cosines over their magnitudes, summed. 1: all pull along; -1: all
        against.
    """
    n = len(pulls_NS)
    found = np.zeros(n)
    count = min(neighbours, n - 1)
    if count < 1:
        return found
    for start in range(0, n, _BLOCK):
        cosine = pulls_NS[start : start + _BLOCK] @ among_NS.T
        rows = np.arange(len(cosine))
        cosine[rows, start + rows] = 0.0
        nearest = np.argpartition(-np.abs(cosine), count - 1, axis=1)[:, :count]
        of = np.take_along_axis(cosine, nearest, axis=1).astype(np.float64)
        found[start : start + _BLOCK] = of.sum(1) / np.maximum(np.abs(of).sum(1), 1e-12)
    return found


