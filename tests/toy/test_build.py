"""Building the toy: from nothing to a folder that loads, or to nothing at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from saerl_core.errors import ConfigError
from saerl_core.toy import build as toy
from saerl_core.toy import data, lm, sae, tokenizer

TINY: dict[str, Any] = {"lm_steps": 2, "sae_samples": 4096, "evaluation_samples": 2, "evaluation_problems": 10}


class Seen(NamedTuple):
    """What a build did, beside the folder that it made."""

    reports: list[tuple[str, int, int]]
    texts: set[str]


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen([], set())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, seen: Seen) -> Path:
    out = tmp_path_factory.mktemp("built") / "toy"
    out.mkdir()  # an empty folder is as good as none
    train_model, train_tokenizer, read_residuals = lm.train_model, tokenizer.train_tokenizer, sae.read_residuals

    def watch_model(words: Any, examples: Any, **rest: Any) -> Any:
        seen.texts.update(text for text, _ in examples)
        return train_model(words, examples, **rest)

    def watch_tokenizer(texts: Any) -> Any:
        texts = list(texts)
        seen.texts.update(texts)
        return train_tokenizer(texts)

    def watch_residuals(model: Any, words: Any, problems: Any) -> Any:
        if len(problems) != TINY["evaluation_problems"]:  # the figures do read held-out prompts
            seen.texts.update(problems)
        return read_residuals(model, words, problems)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm, "train_model", watch_model)
        patch.setattr(tokenizer, "train_tokenizer", watch_tokenizer)
        patch.setattr(sae, "read_residuals", watch_residuals)
        toy.build(out, **TINY, progress=lambda stage, done, total: seen.reports.append((stage, done, total)))
    return out


def test_the_folder_holds_exactly_what_it_should(built: Path) -> None:
    assert {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()} == {
        "README.md", "card.json", "heldout.jsonl.gz", "train.jsonl.gz",
        "lm/chat_template.jinja", "lm/config.json", "lm/generation_config.json", "lm/model.safetensors",
        "lm/tokenizer.json", "lm/tokenizer_config.json",
        "sae/cfg.json", "sae/sae_weights.safetensors",
    }
    assert list(built.parent.iterdir()) == [built]


def test_everybody_may_read_the_files(built: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in built.rglob("*") if path.is_file()}
    assert modes == {0o644}
    assert built.stat().st_mode & 0o777 == 0o755


def test_model_tokenizer_sae_and_data_load(built: Path) -> None:
    words = AutoTokenizer.from_pretrained(built / "lm")
    model = Qwen2ForCausalLM.from_pretrained(built / "lm")
    encoder = sae.load_sae(built / "sae")
    residuals_ND = sae.read_residuals(model, words, ["Tom has 5 coins."])
    assert encoder.encode(residuals_ND).shape == (len(residuals_ND), sae.WIDTH)
    assert len(data.read_rows(built / "train.jsonl.gz")) == toy.TRAIN_ROWS
    assert len(data.read_rows(built / "heldout.jsonl.gz")) == toy.HELDOUT_ROWS


def test_what_depends_on_the_process_is_not_in_the_files(built: Path, tmp_path: Path) -> None:
    config = json.loads((built / "sae" / "cfg.json").read_text())
    assert list(config) == sorted(config)
    words, model = AutoTokenizer.from_pretrained(built / "lm"), Qwen2ForCausalLM.from_pretrained(built / "lm")
    words(["one", "one and two"], padding=True)
    lm.save_model(model, words, tmp_path)
    for name in ("tokenizer.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (built / "lm" / name).read_bytes()


def test_nothing_is_trained_on_the_heldout_set_or_on_the_pool(built: Path, seen: Seen) -> None:
    rows = [row for name in ("train", "heldout") for row in data.read_rows(built / f"{name}.jsonl.gz")]
    assert len(seen.texts) > 1000
    assert not seen.texts & {row["problem"] for row in rows}


def test_the_card_tells_recipe_and_figures(built: Path) -> None:
    card = json.loads((built / "card.json").read_text())
    assert (card["lm"]["steps"], card["sae"]["samples"]) == (2, 4096)
    assert set(card["lm"]["pass_rate"]) == {"all", "1", "2", "3", "4", "5"}
    assert f"{card['lm']['parameters']:,} parameters" in (built / "README.md").read_text()


def test_progress_reaches_the_end_of_every_stage(built: Path, seen: Seen) -> None:
    last = {stage: (done, total) for stage, done, total in seen.reports}
    assert last == {"language model": (2, 2), "sparse autoencoder": (2, 2), "evaluation": (10, 10)}


def test_the_same_seed_trains_the_same_model_and_leaves_the_generator_alone() -> None:
    words = tokenizer.train_tokenizer(["Tom has 5 coins. How many coins now?"] * 3)
    examples = [(f"Tom has {start} coins.", f"#{start}") for start in range(70)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (lm.train_model(words, examples, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.loss == pytest.approx(second.loss, rel=1e-4)
    assert lm.train_model(words, examples, seed=4).loss != pytest.approx(first.loss, rel=1e-6)


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="not an empty folder"):
        toy.build(tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_place_inside_a_file_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="cannot be made"):
        toy.build(tmp_path / "mine" / "toy", **TINY)


def test_a_count_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lm_steps = 0"):
        toy.build(tmp_path / "toy", lm_steps=0)


@pytest.mark.parametrize("stage", [(sae, "train_sae"), (lm, "save_model"), (toy, "save_sae"), (toy, "describe")])
def test_a_build_that_fails_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: tuple[Any, str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(*stage, fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        toy.build(tmp_path / "toy", **{**TINY, "lm_steps": 1, "sae_samples": 1})
    assert list(tmp_path.iterdir()) == []
