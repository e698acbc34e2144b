"""Each control, as an arm of a comparison reaches it: by config alone, through the same flow, to a manifest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.check import check_inputs, check_run
from flows.curate import Curated, curate
from saerl_core import artifact, labels
from saerl_core.config import PolicyConfig, RunConfig
from saerl_core.errors import ConfigError
from saerl_core.manifest import read_manifest, verify_manifest
from tests.flows.conftest import make_config

World = Callable[..., RunConfig]
Sections = dict[str, dict[str, Any]]

ARMS: dict[str, tuple[Sections, str]] = {
    "random directions": ({"features": {"encoder": "random"}}, "control: the features are random directions"),
    "residual stream": ({"features": {"encoder": "residual"}, "clusters": {"weights": "deviation"}},
                        "control: the features are the residual stream itself"),
    "shuffled pass rates": ({"labels": {"shuffle": True}}, "control: pass rates are permuted"),
    "shuffled good and bad": ({"quality": {"shuffle_labels": True}}, "control: good and bad are permuted"),
    "filter by lot": ({"quality": {"method": "random", "drop_share": 0.1}}, "control: prompts are left out by lot"),
}


@pytest.fixture
def arm(curated_once: tuple[Path, Curated]) -> World:
    """Configs over the workspace in which the SAE's arm was curated."""
    def configured(**sections: dict[str, Any]) -> RunConfig:
        base: Sections = {"clusters": {"k": 4, "dims": 64}, "labels": {"count": 20, "samples": 2},
                          "quality": {"count": 60}}
        return make_config(curated_once[0], 160, **{name: {**base.get(name, {}), **fields}
                                                    for name, fields in sections.items()})

    return configured


@pytest.mark.parametrize("name", ARMS)
def test_every_control_gives_a_manifest_that_says_what_it_is(name: str, arm: World,
                                                             curated_once: tuple[Path, Curated]) -> None:
    sections, note = ARMS[name]
    made = curate(arm(**sections))
    header = verify_manifest(made.manifest.path)
    assert header["prompts"]["read"] == 160
    assert any(note in text for text in header["notes"])
    assert note in (made.manifest.path / "report.html").read_text()
    assert note in (made.manifest.path / "summary.md").read_text()
    assert made.id != curated_once[1].id
    assert not any("a control:" in text for text in read_manifest(curated_once[1].manifest.path)["notes"])


@pytest.mark.parametrize(("name", "d_sae", "architecture"), [
    ("random directions", 1024, "random projection"), ("residual stream", 256, "residual stream")])
def test_an_encoder_has_a_store_of_its_own_and_says_its_name(name: str, d_sae: int, architecture: str, arm: World,
                                                             curated_once: tuple[Path, Curated]) -> None:
    config, sae = arm(**ARMS[name][0]), curated_once[1]
    made = curate(config)
    header = read_manifest(made.manifest.path)
    assert made.inputs.store != sae.inputs.store
    assert (header["inputs"]["sae"]["architecture"], header["inputs"]["sae"]["d_sae"]) == (architecture, d_sae)
    assert header["inputs"]["sae"]["sha256"] != read_manifest(sae.manifest.path)["inputs"]["sae"]["sha256"]
    assert (header["health"]["fvu_prompts"], header["health"]["fvu_quantiles"]) == (0, [])
    assert not any("fire on nearly every prompt" in text for text in header["health"]["warnings"])
    assert f"a {architecture} of {d_sae:,} features" in (made.manifest.path / "report.html").read_text()
    assert curate(config).prompts_read_by_model == 0


def test_clusters_of_another_encoder_are_refused(arm: World, curated_once: tuple[Path, Curated]) -> None:
    previous = {"previous": str(curated_once[1].manifest.path)}
    for run in (curate, partial(check_inputs, train=False)):
        with pytest.raises(ConfigError, match=r"clusters\.previous = .* features\.encoder is not the one"):
            run(arm(features={"encoder": "random"}, clusters=previous))
    one = curate(arm(features={"encoder": "random"}))
    kept = curate(arm(features={"encoder": "random"}, clusters={"previous": str(one.manifest.path)}))
    assert read_manifest(kept.manifest.path)["clusters"]["kept"]
    with pytest.raises(ConfigError, match=r"features\.sae is not the SAE"):
        curate(arm(features={"encoder": "random", "encoder_seed": 1},
                   clusters={"previous": str(one.manifest.path)}))


def test_shuffled_pass_rates_are_the_measured_ones_of_other_prompts(arm: World,
                                                                    curated_once: tuple[Path, Curated]) -> None:
    def pass_rates(run: Curated) -> pl.DataFrame:
        scores = pl.read_parquet(run.manifest.path / "scores.parquet", columns=["key", "pass_rate"])
        return scores.drop_nulls().sort("key")

    made = curate(arm(labels={"shuffle": True}))
    measured, mixed = pass_rates(curated_once[1]), pass_rates(made)
    assert mixed["key"].equals(measured["key"])
    assert mixed["pass_rate"].sort().equals(measured["pass_rate"].sort())
    assert not mixed["pass_rate"].equals(measured["pass_rate"])
    told = "measured pass rate, of another prompt drawn by lot"
    assert read_manifest(made.manifest.path)["labels"]["target"] == told
    folders = (made.manifest.path.parent.parent / "artifacts").glob("labels-*")
    assert told in {artifact.read_header(folder)["target"] for folder in folders}
    assert "label" in {entry.stage for entry in made.stages}


def test_shuffled_good_and_bad_filter_nothing(arm: World) -> None:
    header = read_manifest(curate(arm(quality={"shuffle_labels": True})).manifest.path)
    assert not header["quality"]["used"]
    assert "nothing is filtered" in header["quality"]["why"]
    assert "low_quality" not in header["prompts"]["dropped_by_reason"]


def test_a_filter_by_lot_drops_its_share_of_the_usable_prompts_and_reads_no_damaged_copies(arm: World) -> None:
    config = arm(quality={"method": "random", "drop_share": 0.1})
    made = curate(config)
    header = read_manifest(made.manifest.path)
    scores = pl.read_parquet(made.manifest.path / "scores.parquet").drop_nulls("quality")
    lots = np.array([labels.draw(f"quality/{key}", 0) for key in scores["key"]])
    dropped = scores.filter(pl.col("dropped") == "low_quality")["key"]
    assert set(dropped) == set(scores["key"].gather(np.argsort(lots)[: scores.height // 10]))
    assert header["prompts"]["dropped_by_reason"]["low_quality"] == scores.height // 10
    assert (header["quality"]["method"], header["quality"]["used"], header["quality"]["auc"]) == ("random", True, None)
    assert made.damaged_copies_read == 0
    assert not {entry.stage for entry in made.stages} & {"corrupt", "extract damaged copies"}


def test_check_tells_of_every_control(arm: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saerl_core.rl.check.check_config_only", lambda _: PolicyConfig(model="verl is not asked"))
    found = check_run(arm(features={"encoder": "random"}, labels={"shuffle": True},
                          quality={"method": "random", "drop_share": 0.1, "shuffle_labels": True}))
    assert [text[:10] for text in found["notes"]].count("a control:") == 4
    assert (found["sae"]["architecture"], found["sae"]["d_sae"], found["sae"]["k"]) == ("random projection", 1024, 16)
