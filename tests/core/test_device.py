"""The device is chosen as torch would choose it, without importing torch where it has no GPU to offer."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from saerl_core import device
from saerl_core.errors import ModelError


def test_a_gpu_is_seen_where_torch_sees_one() -> None:
    assert device.has_gpu() == torch.cuda.is_available()


@pytest.mark.parametrize(("there", "asked", "chosen"), [
    (True, "auto", "cuda"), (True, "cuda", "cuda"), (True, "cpu", "cpu"), (False, "auto", "cpu"),
    (False, "cpu", "cpu")])
def test_auto_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch, there: bool, asked: str, chosen: str) -> None:
    monkeypatch.setattr(device, "has_gpu", lambda: there)
    assert device.choose_device(asked) == chosen  # type: ignore[arg-type]  # one of the literals


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_gpu", lambda: False)
    with pytest.raises(ModelError, match=r"features\.device is 'cuda'"):
        device.choose_device("cuda")


@pytest.mark.skipif(bool(torch.version.cuda or torch.version.hip), reason="this build of torch may see a GPU")
def test_a_check_imports_neither_torch_nor_prefect() -> None:
    heavy = "{'torch', 'transformers', 'sklearn', 'prefect', 'sae_lens'}"
    code = ("import sys; from flows import check, terminal; from saerl_core.rl import check as verl; "
            f"check.choose_device('auto'); print({heavy} & sys.modules.keys() or 'none')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"
