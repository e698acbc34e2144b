"""SAEs by name: what sae-lens's registry tells without a network, and a hub that gives, or cannot be reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from saerl_core import sae_registry, sae_spec
from saerl_core.errors import ConfigError, ModelError

GPT2 = "sae-lens:gpt2-small-res-jb/blocks.8.hook_resid_pre"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, make_sae: Callable[..., Path]) -> list[str]:
    """A hub that gives a small SAE of ours for whatever SAE is asked, and notes what was asked."""
    from huggingface_hub.errors import EntryNotFoundError
    from sae_lens.loading import pretrained_sae_loaders

    folder = make_sae("standard", hook="blocks.8.hook_resid_pre")
    asked: list[str] = []

    def download(repo_id: str, filename: str, **_: object) -> str:
        asked.append(f"{repo_id}/{filename}")
        if not (folder / Path(filename).name).is_file():
            raise EntryNotFoundError(filename)
        return str(folder / Path(filename).name)

    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", download)
    return asked


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert sae_registry.fetch("sae", tmp_path, tmp_path / "out") == tmp_path / "sae"


@pytest.mark.parametrize(("name", "d_sae", "layer", "k"), [
    ("qwen-scope-3-1.7b-base-w32k-l50/layer14", 32768, 14, 50),
    ("gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical", 16384, 12, None),
])
def test_shapes_are_told_without_a_download_where_names_tell_them(name: str, d_sae: int, layer: int,
                                                                  k: int | None) -> None:
    spec = sae_registry.look_up(f"sae-lens:{name}").spec
    assert spec is not None
    assert (spec.d_sae, spec.layer, spec.k) == (d_sae, layer, k)


def test_what_only_a_download_tells_is_left_open() -> None:
    entry = sae_registry.look_up(GPT2)
    assert (entry.spec, entry.repository, entry.model) == (None, "jbloom/GPT2-Small-SAEs-Reformatted", "gpt2-small")
    assert entry.explained_variance == 0.9


@pytest.mark.parametrize(("name", "complaint"), [
    ("sae-lens:qwen-scope-3-1.7b-base-w32k/layer14", "knows no release .*; near it: qwen-scope-3-1.7b-base-w32k-l50"),
    ("sae-lens:qwen-scope-3-1.7b-base-w32k-l50/layer99", "has no SAE 'layer99'; near it: layer9"),
    ("sae-lens:qwen-scope-3-1.7b-base-w32k-l50/zzz", "it has 28, for example layer0"),
    ("sae-lens:nothing", "expected sae-lens:RELEASE/SAE_ID"),
])
def test_a_name_that_is_not_in_the_registry_is_refused_with_its_neighbours(tmp_path: Path, name: str,
                                                                           complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        sae_registry.find(name, tmp_path, tmp_path)


def test_an_sae_of_something_else_than_the_residual_stream_is_refused_before_the_download(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="SAERL reads the residual stream"):
        sae_registry.find("sae-lens:gemma-scope-2b-pt-mlp-canonical/layer_3/width_16k/canonical", tmp_path, tmp_path)


def test_an_sae_is_downloaded_once_and_kept_as_safetensors(hub: list[str], tmp_path: Path) -> None:
    from sae_lens import SAE

    assert sae_registry.find(GPT2, tmp_path, tmp_path) is None
    folder = sae_registry.fetch(GPT2, tmp_path, tmp_path)
    assert hub[0] == "jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre/cfg.json"
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "cfg.json": 0o644, "sae_weights.safetensors": 0o644}
    spec = sae_spec.read_spec(folder)
    assert (spec.d_in, spec.d_sae, spec.layer, spec.heldout_fvu) == (32, 96, 7, 0.1)
    SAE.load_from_disk(str(folder))
    requests = len(hub)
    assert sae_registry.fetch(GPT2, tmp_path, tmp_path) == folder
    assert len(hub) == requests


def test_a_hub_that_cannot_be_reached_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        sae_registry.fetch(GPT2, tmp_path, tmp_path)
    assert "the hub does not give jbloom/GPT2-Small-SAEs-Reformatted" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
