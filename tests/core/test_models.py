"""What counts as a model that is on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saerl_core import models


@pytest.mark.parametrize(("files", "whole"), [
    (["tokenizer.json"], False),
    (["model.safetensors"], True),
    (["model.safetensors.index.json", "one.safetensors"], False),
    (["model.safetensors.index.json", "one.safetensors", "two.safetensors"], True),
], ids=["what a tokenizer leaves", "one file", "half of the shards", "all shards"])
def test_a_hub_model_is_there_once_all_of_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          files: list[str], whole: bool) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--name"
    folder = cached / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0" * 40)
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    for name in ["config.json", *files]:
        (folder / name).write_text(index if "index" in name else "{}")
    assert models.find("owner/name", tmp_path) == (folder if whole else None)
