from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from transformers import AutoModelForCausalLM

from saerl_core.compare.cost import Size, curation_flops, model_size, training_flops
from saerl_core.config import RunConfig, build_config
from tests.conftest import TOY

READER, POLICY = Size(blocks=1000, head=50), Size(blocks=2000, head=100)
HEADER = {"inputs": {"model": {"layer": 1, "layers": 4, "d_model": 10}, "sae": {"d_sae": 30}},
          "health": {"prompts": 100, "tokens": 4000}, "quality": {"bad": 20},
          "labels": {"samples": 8, "count": 50, "doubtful": 0}}
UNLABELLED = {**HEADER, "labels": {"samples": None, "count": 0, "doubtful": 0}}
READ_TOKEN = 2 * 1000 * 2 / 4 + 2 * 10 * 30


def config(**sections: dict[str, object]) -> RunConfig:
    tree = {"data": {"path": "d"}, "features": {"model": "m", "sae": "s"}, "policy": {"model": "m"}, **sections}
    return build_config(tree, base=TOY)


def test_the_parameters_that_multiply_are_those_of_the_model_that_transformers_loads() -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(TOY / "lm")
    found = model_size(TOY / "lm")
    in_blocks = sum(weight.numel() for weight in model.model.layers.parameters()) + model.model.norm.weight.numel()
    assert (found.blocks, found.head) == (in_blocks, model.lm_head.weight.numel())


def test_curation_costs_what_the_arm_uses_and_nothing_else() -> None:
    plain = {"quality": {"method": "none"}, "difficulty": {"method": "none"}, "schedule": {"clusters_per_batch": None}}
    everything = curation_flops(config(), HEADER, READER, POLICY, 20.0)
    assert everything == pytest.approx((4000 + 40 * 20) * READ_TOKEN + 50 * 8 * (40 + 20) * 2 * 2100)
    assert curation_flops(config(**plain), UNLABELLED, READER, POLICY, 20.0) == 0
    doubted = {**HEADER, "labels": {"samples": 8, "count": 40, "doubtful": 10}}  # whatever the answers were used for
    assert curation_flops(config(**plain), doubted, READER, POLICY, 20.0) == pytest.approx(50 * 8 * 60 * 2 * 2100)
    clusters = config(**{**plain, "schedule": {}})
    assert curation_flops(clusters, UNLABELLED, READER, POLICY, 20.0) == pytest.approx(4000 * READ_TOKEN)
    by_likelihood = {"method": "none", "suspect_answers": 0.1, "suspect_by": "likelihood"}
    for likelihoods in ({"difficulty": {"method": "nll"}}, {"quality": by_likelihood}):
        asked = config(**{**plain, **likelihoods})
        assert curation_flops(asked, UNLABELLED, READER, POLICY, 20.0) == pytest.approx(4000 * 2 * 2100)
    agreeing = config(**{**plain, "quality": {"method": "none", "suspect_answers": 0.1, "agreement_samples": 4}})
    header = {**UNLABELLED, "suspicion": {"looked_at": 90, "judged": 60}}
    assert curation_flops(agreeing, header, READER, POLICY, 20.0) == pytest.approx(150 * 4 * (40 + 20) * 2 * 2100)


def test_a_step_samples_every_token_once_and_updates_on_it_forward_and_backward() -> None:
    metrics = pl.DataFrame({"prompt_length/mean": [30.0, 40.0], "response_length/mean": [20.0, 10.0]})
    assert training_flops(metrics, POLICY, 256) == [50 * 256 * 8 * 2100, 50 * 256 * 8 * 2100]
