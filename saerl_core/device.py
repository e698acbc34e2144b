"""Which device to run on, told without importing torch where its build alone says that there is no GPU.

That import takes a second, and `saerl check` needs nothing else of it.
"""

from __future__ import annotations

import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from saerl_core.errors import ModelError


@cache
def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    found = find_spec("torch")
    assert found is not None
    assert found.origin is not None
    build = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    if not build.get("cuda") and not build.get("hip"):
        return False
    import torch

    return torch.cuda.is_available()


def release_memory() -> None:
    """Give back the GPU memory that torch keeps for this process: another process, a trainer most likely, wants it."""
    if has_gpu():
        import torch

        torch.cuda.empty_cache()


def choose_device(asked: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """The device to run on.

    Raises:
        ModelError: `cuda` is asked for and there is none.
    """
    if asked == "cuda" and not has_gpu():
        raise ModelError("features.device is 'cuda' but torch sees no GPU here; set it to 'auto' or 'cpu'")
    if asked == "auto":
        return "cuda" if has_gpu() else "cpu"
    return asked
