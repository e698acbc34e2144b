"""The toy's card for people, made from the figures of a build."""

from __future__ import annotations

from typing import Any

_TEXT = """\
# The toy: a small world, a model that half understands it, and its SAE

Made by `saerl toy build` from nothing (seed {seed}; {libraries}).
MIT, like the code. It is there to try SAERL out and to test it; the model knows nothing but these stories.

## Data

Word problems in {topics} topics and {phrases} phrases; the level, 1 to 5, is the number of steps.

- `train.jsonl.gz`: {train_rows:,} rows, of which {wrong_key_share:.0%} are `wrong_key` (the answer is a likely
  mistake), {garbled_share:.0%} `garbled` and {duplicate_share:.0%} `duplicate`.
- `heldout.jsonl.gz`: {heldout_rows:,} rows, clean, every level equally often.

Fields: `id`, `problem`, `answer`, `topic`, `level`, `defect`. `defect` is the truth against which a filter is
measured; curation never reads it. No problem is in both files, and neither model nor SAE was trained on any of them.

## Model

`lm/`: Qwen2, {parameters:,} parameters ({layers} layers x {d_model}), byte-level BPE of {vocabulary} tokens,
one a digit. Trained from nothing for {steps:,} steps of {batch_size} worked solutions such as
`27-4=23;23*2=46;#46`. In these a phrase is read right only with a probability of its own, and otherwise as its
misconception: that is what reinforcement learning can mend. Loss on solutions: {loss:.3f} nats a token.

Pass rates on {problems:,} held-out problems: the product of the phrases' probabilities, the mean of {samples}
samples at temperature 1, and greedy.

| level | expected | T=1 | greedy |
|---|---|---|---|
{rates}

## SAE

`sae/`: TopK, {d_sae} features, k = {k}, on the residual stream after layer {layer} (0-based). Trained with sae-lens
on {sae_samples:,} prompt tokens; the input normalisation is folded into the weights. On held-out prompts it
explains {explained_variance:.3f} of the variance with {l0:.1f} features a token; {dead_share:.1%} of the features
never fire there.
"""


def describe(card: dict[str, Any]) -> str:
    """Markdown for the folder's `README.md`.

    Args:
        card: What `build.build` writes into `card.json`.
    """
    model, encoder = card["lm"], card["sae"]
    rates = "\n".join(
        f"| {level} | {model['expected'][level]:.3f} | {rate:.3f} | {model['greedy'][level]:.3f} |"
        for level, rate in model["pass_rate"].items()
    )
    return _TEXT.format(
        seed=card["seed"],
        libraries=", ".join(f"{name} {number}" for name, number in card["versions"].items()),
        rates=rates,
        sae_samples=encoder["samples"],
        **card["data"],
        **model,
        **{name: value for name, value in encoder.items() if name != "samples"},
    )
