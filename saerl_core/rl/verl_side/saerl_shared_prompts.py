"""A forward pass in which the answers to a prompt share it.

GRPO reads several answers to every prompt, and the prompt once more for each of them. Here all tokens of a micro-batch
lie in one row, a prompt's once, and only attention knows who sees whom: a prompt itself, an answer its prompt and
itself. Nothing outside attention is padded. Log-probabilities and gradients are those of reading each answer behind its
own copy of the prompt, but for the last bits of sums. (The idea: Prefix Grouper, arXiv 2506.05433. verl has it, but not
in the trainer that it uses here.)

A prompt's last token belongs to each answer: what is read for an answer is that token and all of the answer but its
last one, which are the places that predict it. So the logits are the row's tail, as it is.

Shapes: P distinct prompts of at most L tokens without the last, N answers of at most M tokens, T tokens of the row (the
prompts, then the answers), S tokens of all answers, H heads, D head dimension.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

logger = logging.getLogger(__name__)
_SHARED = "saerl_shared"
_ALIKE = 1e-4  # of the logits' spread; float32 gives 1e-6


class Layout(NamedTuple):
    """Where the tokens of a micro-batch are."""

    prompt_of: torch.Tensor
    """[N]: which prompt an answer is to."""
    prompts: torch.Tensor
    """[P, L]: true where a prompt has a token."""
    answers: torch.Tensor
    """[N, M]: true where a token is read for an answer."""


def share_prompts(model: Any) -> bool:
    """Switch a causal LM of transformers to shared prompts, if it then gives what it gave before.

    Whether a family passes everything through and attends to nothing else is found out by trying it: a layer with a
    window or a state of its own refuses, or gives other logits.

    Returns:
        Whether the model was switched; `model_inputs` has what it takes then.
    """
    before = model.config._attn_implementation
    if before != "sdpa" or set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}:
        return False
    prompts, answers = [[3, 1, 2], [2, 4, 1, 3, 0], [3, 1, 2]], [[1, 4, 0, 2], [3, 2], [2, 0, 1]]
    rows = [torch.tensor(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    with torch.no_grad():
        alone_SV = torch.cat([
            model(input_ids=row[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
            for row, prompt in zip(rows, prompts, strict=True)
        ])
        model.set_attn_implementation(_SHARED)
        try:
            shared_SV = model(use_cache=False, **model_inputs(
                torch.cat(rows), torch.tensor([len(prompt) for prompt in prompts]),
                torch.tensor([len(answer) for answer in answers]),
            )).logits[0]
            alike = bool((shared_SV - alone_SV).abs().max() < _ALIKE * alone_SV.std())
        except Exception as error:  # whatever a family does with what it does not know; verl's own way is as right
            logger.warning("prompts are read once for each answer: this model cannot share them: %r", error)
            alike = False
    if not alike:
        model.set_attn_implementation(before)
    return alike


def model_inputs(ids: torch.Tensor, prompt_lengths_N: torch.Tensor, answer_lengths_N: torch.Tensor) -> dict[str, Any]:
    """What a switched model takes, to give the logits [1, S, V] that predict the answers' tokens, answer by answer.

    Args:
        ids: the N rows one behind the other, each a prompt of at least one token and its answer.
        prompt_lengths_N: tokens.
        answer_lengths_N: tokens.
    """
    begins_N = prompt_lengths_N - 1
    rows = list(zip(ids.split((prompt_lengths_N + answer_lengths_N).tolist()), begins_N.tolist(), strict=True))
    place: dict[tuple[int, ...], int] = {}
    prompt_of = [place.setdefault(tuple(row[:begin].tolist()), len(place)) for row, begin in rows]
    lengths_P = torch.tensor([len(prompt) for prompt in place])
    layout = Layout(torch.tensor(prompt_of), _filled(lengths_P), _filled(answer_lengths_N))
    positions_PL, positions_NM = (
        torch.arange(filled.shape[1]).expand(filled.shape) for filled in (layout.prompts, layout.answers)
    )
    return {
        "input_ids": torch.cat([
            *(torch.tensor(prompt, dtype=ids.dtype) for prompt in place),
            *(row[begin:-1] for row, begin in rows),
        ])[None],
        "position_ids": torch.cat([
            positions_PL[layout.prompts], (begins_N[:, None] + positions_NM)[layout.answers],
        ])[None],
        "attention_mask": _answers_see(layout),
        "logits_to_keep": int(answer_lengths_N.sum()),
        "layout": layout,
    }


def _filled(lengths: torch.Tensor) -> torch.Tensor:
    return torch.arange(int(lengths.max())) < lengths[:, None]


def _answers_see(layout: Layout) -> torch.Tensor:
    """[N, 1, M, L + M]: the whole prompt, and the answer up to the token itself."""
    answers, longest = layout.answers.shape
    prompt_N1L = layout.prompts[layout.prompt_of, None]
    itself_MM = torch.ones(longest, longest, dtype=torch.bool).tril()
    return torch.cat([
        prompt_N1L.expand(-1, longest, -1), itself_MM.expand(answers, -1, -1)
    ], dim=-1)[:, None]


def _attend(
    module: torch.nn.Module, query_1HTD: torch.Tensor, key_1HTD: torch.Tensor, value_1HTD: torch.Tensor,
    attention_mask: torch.Tensor | None, layout: Layout | None = None, sliding_window: int | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    if layout is None:  # any other use of the model
        return sdpa_attention_forward(module, query_1HTD, key_1HTD, value_1HTD, attention_mask, **settings)
    if sliding_window is not None:
        raise ValueError("an answer would have to forget its prompt")
    n_prompt_tokens = int(layout.prompts.sum())

    def spread(states_1HTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        prompts_HTD, answers_HTD = states_1HTD[0].split([n_prompt_tokens, states_1HTD.shape[2] - n_prompt_tokens], 1)
        return _pad(prompts_HTD, layout.prompts), _pad(answers_HTD, layout.answers)

    def behind_prompts(prompts_PHLD: torch.Tensor, answers_NHMD: torch.Tensor) -> torch.Tensor:
        return torch.cat([prompts_PHLD.index_select(0, layout.prompt_of), answers_NHMD], dim=2)

    (query_P, query_N), keys, values = spread(query_1HTD), spread(key_1HTD), spread(value_1HTD)
    prompts_PLHD, _ = sdpa_attention_forward(module, query_P, keys[0], values[0], None, **settings)
    answers_NMHD, _ = sdpa_attention_forward(
        module, query_N, behind_prompts(*keys), behind_prompts(*values), attention_mask, **settings
    )
    return torch.cat([prompts_PLHD[layout.prompts], answers_NMHD[layout.answers]])[None], None


def _pad(states_HTD: torch.Tensor, filled_RT: torch.Tensor) -> torch.Tensor:
    """Rows of states [R, H, T, D] with zeros where there is no token, which nothing that is kept attends to."""
    heads, _, width = states_HTD.shape
    padded_RTHD = states_HTD.new_zeros(*filled_RT.shape, heads, width)
    padded_RTHD[filled_RT] = states_HTD.transpose(0, 1)
    return padded_RTHD.transpose(1, 2)


AttentionInterface.register(_SHARED, _attend)
AttentionMaskInterface.register(_SHARED, sdpa_mask)
