"""`saerl train-sae` as a flow and as a command, and curations that read with one model for the policy of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.curate import curate
from flows.train_sae import train_sae
from saerl_core import artifact, sae_spec
from saerl_core.artifact import HEADER
from saerl_core.config import RunConfig
from saerl_core.errors import ConfigError, ModelError
from saerl_core.manifest import verify_manifest
from saerl_core.sae_training import train
from tests.damage import cut, flip
from tests.flows.conftest import Run

SMALL = {"tokens": 8192, "batch_tokens": 256, "buffer_tokens": 1024, "d_sae": 64, "k": 4, "learning_rate": 3e-3,
         "heldout_tokens": 400}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_sae_is_trained_once_and_then_read_by_a_curation(
        world: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = world(sae_training=SMALL, features={"sae": "mine/sae"})
    first = train_sae(config)
    assert first["trained_now"]
    out = tmp_path / "mine" / "sae"
    assert Path(first["sae"]) == out
    assert set(contents(out)) == {"cfg.json", "sae_weights.safetensors", "card.json", "curve.json", "report.html",
                                  "SHA256SUMS"}
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}
    assert sae_spec.read_spec(out).layer == 2  # the middle one
    assert first["heldout"]["explained_variance"] > 0.5
    assert sae_spec.read_spec(out).heldout_fvu == first["heldout"]["document_fvu"] > 0.1
    assert first["heldout"]["cross_entropy"]["tokens"] > 300
    assert not list((config.root / "sae-training").glob("[!.]*"))
    assert "explains" in (out / "report.html").read_text()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    before = contents(out)
    monkeypatch.setattr(train, "train", never)
    assert not train_sae(config)["trained_now"]
    assert contents(out) == before
    (out / "cfg.json").unlink()  # a copy that was damaged is made again, without training
    assert not train_sae(config)["trained_now"]
    assert contents(out) == before

    curated = curate(config)
    assert curated.inputs.encoder.d_sae == 64
    health = verify_manifest(curated.manifest.path)["health"]
    assert health["fvu_prompts"] == health["prompts"]
    assert health["fvu_limit"] == pytest.approx(2 * first["heldout"]["document_fvu"], abs=1e-5)
    assert health["far_share"] < 0.1  # of prompts like those that it was trained on


def test_the_same_inputs_in_another_place_give_the_same_bytes(world: Callable[..., RunConfig], tmp_path: Path) -> None:
    first = Path(train_sae(world(sae_training=SMALL, features={"sae": "one"}))["sae"])
    moved = world(sae_training={**SMALL, "save_every": 3, "out": "two"}).model_copy(update={"workspace": "elsewhere"})
    second = Path(train_sae(moved)["sae"])
    assert (first.name, second.name) == ("one", "two")
    assert contents(first) == contents(second)


def test_a_training_whose_artifact_was_deleted_is_done_again(world: Callable[..., RunConfig]) -> None:
    config = world(sae_training=SMALL, features={"sae": "mine"})
    before = contents(Path(train_sae(config)["sae"]))
    for header in (config.root / "artifacts").glob(f"sae-*/{HEADER}"):
        header.unlink()
    again = train_sae(config)
    assert again["trained_now"]
    assert contents(Path(again["sae"])) == before


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_sae_is_refused_by_a_curation_and_written_again_by_its_training(
        world: Callable[..., RunConfig], damage: Callable[[Path], None]) -> None:
    config = world(sae_training=SMALL, features={"sae": "mine"})
    out = Path(train_sae(config)["sae"])
    before = contents(out)
    for name in before:
        damage(out / name)
        if name in ("cfg.json", "sae_weights.safetensors"):
            with pytest.raises(ModelError) as refused:
                curate(config)
            assert name in str(refused.value)
            assert "\n" not in str(refused.value)
        artifact._hash_once.cache_clear()  # as in another process
        assert not train_sae(config)["trained_now"]
        assert contents(out) == before


def test_a_corpus_of_its_own_can_be_named(world: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("".join(
        json.dumps({"text": f"Tom has {number} coins. Tom earns {number * 3} more. " * 3}) + "\n"
        for number in range(80)))
    found = train_sae(world(features={"sae": "mine"}, sae_training={
        **SMALL, "corpus": {"path": "corpus.jsonl"}, "architecture": "batchtopk", "layer": 1}))
    assert (found["layer"], found["training"]["documents"] + found["heldout"]["documents"]) == (1, 80)
    assert sae_spec.read_spec(Path(found["sae"])).architecture == "jumprelu"  # as batchtopk is read


@pytest.fixture
def on_config(saerl: Run, world: Callable[..., RunConfig]) -> Run:
    """Run `saerl COMMAND` on a config of these sections: (exit code, stdout, stderr)."""
    def run(command: str, *args: str, **sections: Any) -> tuple[int, str, str]:
        Path("run.yaml").write_text(yaml.safe_dump(world(**sections).model_dump(mode="json", exclude={"base"})))
        return saerl(command, "run.yaml", *args)

    return run


MISTAKES = {
    "no section": ({}, "sae_training is not set"),
    "a packaged SAE": ({"sae_training": SMALL}, "features.sae = 'saerl:toy/sae' is an SAE that exists"),
    "a registered SAE": ({"sae_training": SMALL, "features": {"sae": "sae-lens:a/b"}}, "is an SAE that exists"),
    "somebody's folder": ({"sae_training": {**SMALL, "out": "taken"}}, "something lies there"),
    "a file": ({"sae_training": {**SMALL, "out": "taken/note"}}, "something lies there"),
    "a layer too many": ({"sae_training": {**SMALL, "layer": 4, "out": "o"}}, "features.model has 4 layers (0 to 3)"),
    "k too large": ({"sae_training": {**SMALL, "k": 64, "out": "o"}}, "sae_training.k = 64 must be smaller"),
    "no corpus": ({"sae_training": {**SMALL, "corpus": {"path": "none.jsonl"}, "out": "o"}}, "none.jsonl"),
    "no such column": ({"sae_training": {**SMALL, "corpus": {"path": "prompts.jsonl"}, "out": "o"}},
                       "no column 'text'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(on_config: Run, tmp_path: Path,
                                                  case: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note").write_text("precious")
    sections, complaint = MISTAKES[case]
    code, out, err = on_config("train-sae", **sections)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert complaint in err
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "prompts.jsonl", "run.yaml"}
    assert (tmp_path / "taken" / "note").read_text() == "precious"


@pytest.mark.parametrize("changes", [
    {"tokens": 100}, {"buffer_tokens": 300}, {"warmup": 0.7, "decay": 0.7}, {"layer": 1}])
def test_amounts_that_contradict_each_other_are_refused_by_name(world: Callable[..., RunConfig],
                                                                changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"sae_training\.\w+ .*(sae_training|features)\.\w+"):
        world(sae_training={**SMALL, **changes}, features={"layer": 2})


def test_the_command_prints_one_json_object(on_config: Run, tmp_path: Path) -> None:
    code, out, _ = on_config("train-sae", "--json", sae_training={**SMALL, "tokens": 1024}, features={"sae": "mine"})
    assert code == 0
    assert json.loads(out)["sae"] == str(tmp_path / "mine")


@pytest.mark.parametrize("command", ["run", "curate", "check"])
def test_a_run_without_its_sae_says_how_to_train_one(on_config: Run,
                                                     command: str) -> None:
    heldout = {"heldout": {"path": "prompts.jsonl", "columns": {"prompt": "problem"}}} if command == "run" else {}
    code, _, err = on_config(command, sae_training=SMALL, features={"sae": "mine"}, data=heldout)
    assert code == 2
    assert "mine: no SAE in sae-lens's format there" in err
    assert "`saerl train-sae`" in err


def test_check_tells_of_a_registered_sae_that_is_not_here(on_config: Run) -> None:
    code, out, _ = on_config("check", "--json", features={"sae": "sae-lens:gpt2-small-res-jb/blocks.8.hook_resid_pre"})
    assert code == 0
    assert any("download it from jbloom/GPT2-Small-SAEs-Reformatted" in note for note in json.loads(out)["notes"])
    code, _, err = on_config("check", features={"sae": "sae-lens:qwen-scope-3-1.7b-base-w32k-l50/layer14"})
    assert code == 2
    assert "features.sae has d_in 2048, features.model has a residual stream of 128" in err


def test_reader_and_policy_may_be_different_models(world: Callable[..., RunConfig], tiny_reader: Path,
                                                   make_sae: Callable[..., Path]) -> None:
    config = world(features={"model": str(tiny_reader), "sae": str(make_sae("jumprelu"))})
    curated = curate(config)
    assert curated.inputs.model_hash != curated.inputs.policy_hash
    assert (curated.inputs.d_model, curated.inputs.layer, curated.inputs.layers) == (32, 1, 3)
    header = verify_manifest(curated.manifest.path)
    assert header["prompts"]["kept"] > 0


def test_a_reader_of_real_text_curates_for_the_toy_policy(world: Callable[..., RunConfig], shared: Path) -> None:
    models = shared / "models"
    curated = curate(world(features={"model": str(models / "mathmini"), "sae": str(models / "mathmini-sae")}))
    assert curated.inputs.model_hash != curated.inputs.policy_hash
    assert curated.inputs.layer == 3
    verify_manifest(curated.manifest.path)
