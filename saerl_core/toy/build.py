"""Make the whole toy from nothing: data sets, model, SAE, and a card that says how good they are.

Counted in steps, never in seconds, so that a slow machine makes the same toy. Everything is written under a
temporary name beside the goal and renamed at the end: the folder is complete or absent.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from saerl_core.artifact import staging
from saerl_core.errors import ConfigError
from saerl_core.rl.rollouts import load_policy, sample_scores
from saerl_core.rl.verl_side.saerl_verifier import is_correct
from saerl_core.sae_training.trainer import save_sae
from saerl_core.toy import data, lm, sae, tokenizer, world
from saerl_core.toy.card import describe

TRAIN_ROWS = 2600
HELDOUT_ROWS = 1200
LM_STEPS = 1400
SAE_SAMPLES = 1_500_000
MAX_RESPONSE_TOKENS = 64
"""Five steps and an answer take at most 45."""
_TOKENIZER_TEXTS = 5000
_SAE_PROMPTS = 8000
_TOKENS_PER_PROMPT = 30
_SEED = 0
_LIBRARIES = ("torch", "transformers", "tokenizers", "sae-lens")

Progress = Callable[[str, int, int], None]
"""Called with (stage, units done, units)."""


def build(
    out: Path,
    *,
    lm_steps: int = LM_STEPS,
    sae_samples: int = SAE_SAMPLES,
    evaluation_samples: int = 4,
    evaluation_problems: int = HELDOUT_ROWS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build the toy into `out`: `lm/`, `sae/`, `train.jsonl.gz`, `heldout.jsonl.gz`, `card.json`, `README.md`.

    Args:
        out: Folder to make; it may exist if it is empty.
        lm_steps: Optimiser steps of the language model, of 64 problems each.
        sae_samples: Tokens that the SAE is trained on.
        evaluation_samples: Responses per held-out problem, at temperature 1.
        evaluation_problems: Held-out problems on which the figures are measured (the first ones).
        progress: Called as the work goes on.

    Returns:
        The card, as in `card.json`.

    Raises:
        ConfigError: `out` is a file or a folder with something in it, or a count is below 1.
    """
    counts = {"lm_steps": lm_steps, "sae_samples": sae_samples, "evaluation_samples": evaluation_samples,
              "evaluation_problems": evaluation_problems}
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} = {count}: must be at least 1")
    _check_free(out)
    out = out.resolve()  # `.` has a name too
    report = progress or (lambda stage, done, total: None)
    with staging(out.parent) as temporary:
        made = temporary / out.name
        made.mkdir()
        heldout, pool = draw_data()
        data.write_rows(data.make_clean_rows(heldout, "heldout"), made / "heldout.jsonl.gz")
        data.write_rows(data.make_pool(pool, TRAIN_ROWS, f"{_SEED}/defects"), made / "train.jsonl.gz")
        taken = frozenset(problem.text for problem in [*heldout, *pool])

        words = tokenizer.train_tokenizer(
            problem.text for problem in world.draw_others(_rng("tokenizer"), _TOKENIZER_TEXTS, exclude=taken)
        )
        trained = lm.train_model(
            words, _draw_examples(lm_steps, taken), seed=_SEED, progress=partial(report, "language model")
        )
        lm.save_model(trained.model, words, made / "lm")

        prompts = world.draw_others(_rng("sae"), _count_prompts(sae_samples), exclude=taken)
        encoder = sae.train_sae(
            sae.read_residuals(trained.model, words, [problem.text for problem in prompts]),
            samples=sae_samples,
            seed=_SEED,
            progress=partial(report, "sparse autoencoder"),
        )
        save_sae(encoder, made / "sae")

        tested = heldout[:evaluation_problems]
        figures = sae.measure_sae(
            sae.load_sae(made / "sae"),
            sae.read_residuals(trained.model, words, [problem.text for problem in tested]),
        )
        card = {
            "name": "saerl:toy",
            "seed": _SEED,
            "data": {
                "topics": len(world.TOPICS),
                "phrases": sum(len(topic.phrases) for topic in world.TOPICS),
                "levels": list(world.LEVELS),
                "train_rows": TRAIN_ROWS,
                "heldout_rows": HELDOUT_ROWS,
                "wrong_key_share": data.SHIPPED.wrong_key,
                "garbled_share": data.SHIPPED.garbled,
                "duplicate_share": data.SHIPPED.duplicate,
            },
            "lm": {
                "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
                "layers": trained.model.config.num_hidden_layers,
                "d_model": trained.model.config.hidden_size,
                "vocabulary": len(words),
                "steps": lm_steps,
                "batch_size": lm.BATCH_SIZE,
                "loss": round(trained.loss, 4),
                **_pass_rates(made / "lm", tested, evaluation_samples, report),
            },
            "sae": {
                "layer": sae.LAYER,
                "d_sae": sae.WIDTH,
                "k": sae.ACTIVE,
                "samples": sae_samples,
                "explained_variance": round(figures.explained_variance, 4),
                "l0": round(figures.l0, 2),
                "dead_share": round(figures.dead_share, 4),
            },
            "versions": {name: version(name) for name in _LIBRARIES},
        }
        (made / "README.md").write_text(describe(card), encoding="utf-8")
        (made / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        _make_readable(made)
        made.rename(out)
    return card


def draw_data() -> tuple[list[world.Problem], list[world.Problem]]:
    """The problems of the held-out set and of the training pool, before any damage. They share no text."""
    heldout = world.draw_distinct(_rng("heldout"), HELDOUT_ROWS, balanced=True)
    pool = world.draw_distinct(
        _rng("pool"), data.count_distinct(TRAIN_ROWS), exclude={problem.text for problem in heldout}
    )
    return heldout, pool


def draw_benchmark(seed: int, rows: int, heldout_rows: int,
                   shares: data.Shares) -> tuple[list[data.Row], list[data.Row]]:
    """Another training pool and held-out set of the same world, for experiments; the same arguments give the same rows.

    No problem is in both, or in the shipped sets. Many of level 1 were in the shipped model's training, as a world of
    some 30,000 such stories will have it; few longer ones were.

    Args:
        seed: Of everything that is drawn. The sets of two seeds share some short problems by chance.
        rows: Size of the pool.
        heldout_rows: Size of the held-out set: clean, every level equally often.
        shares: How much is wrong with the pool.

    Returns:
        (pool, held-out set).
    """
    shipped = frozenset(problem.text for problems in draw_data() for problem in problems)
    heldout = world.draw_distinct(_rng(f"benchmark/{seed}/heldout"), heldout_rows, exclude=shipped, balanced=True)
    taken = {*shipped, *(problem.text for problem in heldout)}
    pool = world.draw_distinct(_rng(f"benchmark/{seed}/pool"), data.count_distinct(rows, shares), exclude=taken)
    return (data.make_pool(pool, rows, f"{_SEED}/benchmark/{seed}/defects", shares, exclude=taken),
            data.make_clean_rows(heldout, "heldout"))


def _check_free(out: Path) -> None:
    """Refuse what would only fail at the end of a long build."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: already exists and is not an empty folder; name another one, or empty it")
    parent = next(folder for folder in out.resolve().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{out}: cannot be made: {parent} is not a folder that you may write to")


def _draw_examples(steps: int, taken: frozenset[str]) -> list[lm.Example]:
    problems = world.draw_others(_rng("corpus"), steps * lm.BATCH_SIZE, exclude=taken)
    readings = _rng("readings")
    return [(problem.text, world.write_base_solution(problem, readings)) for problem in problems]


def _rng(part: str) -> random.Random:
    return random.Random(f"{_SEED}/{part}")


def _count_prompts(samples: int) -> int:
    """Prompts that the SAE reads: a few passes over their tokens, or fewer where the training is short."""
    return min(_SAE_PROMPTS, samples // _TOKENS_PER_PROMPT + 1)


def _pass_rates(folder: Path, tested: list[world.Problem], samples: int, progress: Progress) -> dict[str, Any]:
    """Held-out pass rates: at temperature 1 and greedy, overall and by level, beside what the world makes likely."""
    policy = load_policy(folder, device="cpu")
    measure = partial(
        sample_scores,
        policy,
        [[{"role": "user", "content": problem.text}] for problem in tested],
        [problem.answer for problem in tested],
        score=is_correct,
        max_response_tokens=MAX_RESPONSE_TOKENS,
        seed=_SEED,
    )
    sampled = measure(samples=samples, temperature=1.0, progress=partial(progress, "evaluation"))
    greedy = measure(samples=1, temperature=0.0)
    levels = [problem.level for problem in tested]
    return {
        "samples": samples,
        "problems": len(tested),
        "pass_rate": _by_level(sampled.mean(axis=1).tolist(), levels),
        "greedy": _by_level(greedy.mean(axis=1).tolist(), levels),
        "expected": _by_level([problem.expected_pass_rate for problem in tested], levels),
    }


def _by_level(rates: list[float], levels: list[int]) -> dict[str, float]:
    groups = {"all": rates} | {
        str(level): [rate for rate, of in zip(rates, levels, strict=True) if of == level]
        for level in sorted(set(levels))
    }
    return {name: round(sum(group) / len(group), 4) for name, group in groups.items()}


def _make_readable(folder: Path) -> None:
    """Files 0644, folders 0755: sae-lens and safetensors write files that only their owner can read."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
