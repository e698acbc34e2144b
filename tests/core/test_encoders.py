"""The controls in the SAE's place, against loops over `output_hidden_states`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from saerl_core import encoders, extract, models, sae, sae_spec
from saerl_core.config import FeaturesConfig
from saerl_core.features import FeatureRows, health
from tests.core.test_extract import PROMPTS, dense_max


def config(**settings: object) -> FeaturesConfig:
    return FeaturesConfig.model_validate(
        {"model": "x", "sae": "y", "device": "cpu", "sink_norm_ratio": 1e9, **settings})


def read(reader: Path, folder: Path, settings: FeaturesConfig) -> FeatureRows:
    return extract.extract(*extract.load_reader(reader, folder, 1, settings), PROMPTS, settings)


@pytest.fixture(scope="module")
def hidden(tiny_reader: Path) -> list[torch.Tensor]:
    """h_TD of each prompt after layer 1, one prompt at a time through the whole model."""
    model = AutoModelForCausalLM.from_pretrained(tiny_reader, dtype=torch.float32).eval()
    tokenizer = models.load_tokenizer(tiny_reader)
    with torch.no_grad():
        return [model(input_ids=torch.tensor([models.render(tokenizer, chat, chat_template=True)]),
                      output_hidden_states=True).hidden_states[2][0] for chat in PROMPTS]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sae, "CHUNK_ELEMENTS", 7 * 96)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("seed", [0, 3])
def test_random_features_are_the_largest_projections_on_directions_drawn_by_lot(
        tiny_reader: Path, make_sae: Callable[..., Path], hidden: list[torch.Tensor], seed: int) -> None:
    rows = read(tiny_reader, make_sae("topk"), config(encoder="random", encoder_seed=seed))
    directions = torch.randn(96, 32, generator=torch.Generator().manual_seed(seed)).numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for row, h_TD in enumerate(hidden):
        acts = np.zeros((len(h_TD), 96))
        for token, h in enumerate(h_TD.numpy()):
            projected = directions @ h
            for feature in np.argsort(-projected)[:8]:
                acts[token, feature] = max(projected[feature], 0)
        np.testing.assert_allclose(rows.matrix().toarray()[row], acts.mean(0), atol=2e-5)
        np.testing.assert_allclose(dense_max(rows)[row], acts.max(0), atol=2e-5)


@pytest.mark.usefixtures("small_chunks")
def test_residual_features_are_the_mean_positive_and_negative_parts_of_the_residual_stream(
        tiny_reader: Path, make_sae: Callable[..., Path], hidden: list[torch.Tensor]) -> None:
    rows = read(tiny_reader, make_sae("topk"), config(encoder="residual"))
    positive, negative = np.split(rows.matrix().toarray(), 2, axis=1)
    for row, h_TD in enumerate(hidden):
        h = h_TD.numpy()
        np.testing.assert_allclose(positive[row], np.where(h > 0, h, 0).mean(0), atol=1e-5)
        np.testing.assert_allclose(negative[row], np.where(h < 0, -h, 0).mean(0), atol=1e-5)
        np.testing.assert_allclose(positive[row] - negative[row], h.mean(0), atol=1e-5)


@pytest.mark.parametrize(("architecture", "stated", "k"), [
    ("topk", None, 8), ("jumprelu", None, 64), ("jumprelu", 5.4, 5), ("standard", 500.0, 96)])
def test_as_many_random_features_fire_as_the_sae_fires_or_a_stated_number(
        make_sae: Callable[..., Path], architecture: str, stated: float | None, k: int) -> None:
    folder = make_sae(architecture)
    if stated is not None:
        cfg = json.loads((folder / "cfg.json").read_text())
        cfg["metadata"]["l0"] = stated
        (folder / "cfg.json").write_text(json.dumps(cfg))
    settings = config(encoder="random")
    assert sae_spec.encoder_spec(sae_spec.read_spec(folder), settings).k == k
    h_TD = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    _, token_N, _ = encoders.load_encoder(folder, settings, torch.device("cpu"), torch.float32).encode(h_TD)
    positive_T = (h_TD @ encoders.random_directions(32, 96, 0) > 0).sum(1)
    assert torch.equal(torch.bincount(token_N, minlength=20), positive_T.clamp(max=k))


@pytest.mark.parametrize("encoder", ["random", "residual"])
def test_a_control_is_known_by_what_it_computes_and_not_by_the_saes_weights(
        make_sae: Callable[..., Path], encoder: str) -> None:
    one, other, wider = make_sae(seed=0), make_sae(seed=1), make_sae(d_in=64)
    found = {folder: sae_spec.encoder_hash(folder, config(encoder=encoder)) for folder in (one, other, wider)}
    assert found[one] == found[other] != found[wider]
    assert found[one] not in {sae_spec.sae_hash(one), sae_spec.encoder_hash(one, config(encoder="sae"))}
    reseeded = sae_spec.encoder_hash(one, config(encoder=encoder, encoder_seed=1))
    assert (reseeded == found[one]) == (encoder == "residual")


def test_the_sae_is_known_by_its_files(make_sae: Callable[..., Path]) -> None:
    folder = make_sae()
    assert sae_spec.encoder_hash(folder, config()) == sae_spec.sae_hash(folder)
    assert sae_spec.encoder_spec(sae_spec.read_spec(folder), config()) == sae_spec.read_spec(folder)


@pytest.mark.parametrize("encoder", ["random", "residual"])
def test_what_a_control_leaves_unexplained_is_not_told(tiny_reader: Path, make_sae: Callable[..., Path],
                                                       encoder: str) -> None:
    rows = read(tiny_reader, make_sae("topk"), config(encoder=encoder))
    assert np.isnan(rows.fvu).all()
    figures = health(rows, dense=encoder == "residual")
    assert (figures.fvu_prompts, figures.fvu_quantiles) == (0, ())
    if encoder == "residual":
        assert figures.ubiquitous_share > 0.5
        assert figures.warnings == ()
