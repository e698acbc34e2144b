"""Which function a verifier's name means, the same in labels, evaluation and the RL reward.

    exact                            the spelling of the final answer (`saerl_verifier`)
    math                             the same spelling, or the same value (`saerl_math`, which needs math-verify)
    import:package.module:function   a function of the user's, (response, answer) -> bool or a number in [0, 1]

Only what is named is imported. A user's module is found like any other, and beside the config file, last.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

Verify = Callable[[str, str], float]
"""(response, reference answer) -> reward in [0, 1]."""

PATTERN = r"exact|math|import:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
FOLDER_VARIABLE = "SAERL_VERIFIER_FOLDER"
"""Environment variable that tells verl's processes where the config file lies."""
_EXACT_VERSION = 1
_INTEGER = re.compile(r"-?[0-9]+")


def load_verifier(name: str, folder: str | None = None) -> tuple[Verify, str]:
    """The verifier of a name, and its identity: it changes whenever its verdicts may.

    Args:
        name: See above.
        folder: Where the config lies; a user's module may lie there.

    Returns:
        The function, and `exact-1`, `math-verify-0.9.0+exact-1` or `import:module:function-<hash of its source file>`.
        What the user's file imports in turn is not in the hash.

    Raises:
        ValueError: there is no such verifier, or it is no function of two arguments. One line.
    """
    if not re.fullmatch(PATTERN, name):
        raise ValueError(f"{name!r} is no verifier: `exact`, `math`, or `import:package.module:function`")
    exact = _neighbour("saerl_verifier")
    identity = f"exact-{_EXACT_VERSION}"
    if name == "exact":
        return lambda response, answer: float(exact.is_correct(response, answer)), identity
    if name == "math":
        try:
            version = metadata.version("math-verify")
        except metadata.PackageNotFoundError as error:
            raise ValueError(f"`math` needs math-verify, which {sys.executable} does not have: "
                             "pip install math-verify") from error
        same_value = _neighbour("saerl_math").same_value
        return lambda response, answer: _math(exact, same_value, response, answer), f"math-verify-{version}+{identity}"
    return _imported(name, folder)


def _math(exact: Any, same_value: Callable[[str, str], bool], response: str, answer: str) -> float:
    if exact.is_correct(response, answer):
        return 1.0
    stated, marked = exact.extract_answer(response), exact.extract_answer(answer)
    expected = answer if marked is None else marked
    if not stated or not expected:
        return 0.0
    if all(_INTEGER.fullmatch(exact.normalise_answer(text)) for text in (stated, expected)):
        return 0.0  # two integers that are spelled differently
    return float(same_value(stated, expected))


def _imported(name: str, folder: str | None) -> tuple[Verify, str]:
    _, module_name, function_name = name.split(":")
    if folder and folder not in sys.path:
        sys.path.append(folder)  # last: a file there must not stand in for an installed module
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything when it is imported
        raise ValueError(f"{name}: {module_name} cannot be imported: {type(error).__name__}: {error}; it is looked "
                         f"for among the installed packages and in {folder or 'no folder'}") from error
    function = getattr(module, function_name, None)
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise ValueError(f"{name}: {module.__file__} has no plain function {function_name!r}")
    try:
        inspect.signature(function).bind("response", "answer")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: cannot be called as {function_name}(response, answer): {error}") from error
    source = inspect.getsourcefile(function) or module.__file__
    if source is None:
        raise ValueError(f"{name}: has no source file, so a change in it could not be seen")
    digest = _digest(module, source)

    def verify(response: str, answer: str) -> float:
        score = function(response, answer)
        if not isinstance(score, bool | int | float) or not math.isfinite(score) or not 0 <= score <= 1:
            raise ValueError(f"{name} gave {score!r} for the answer {answer!r}: expected a bool or a number in [0, 1]")
        return float(score)

    return verify, f"{name}-{digest}"


@cache
def _digest(_module: ModuleType, source: str) -> str:
    """Hash of a module's source file as it was when first asked for: an import, too, is for the life of a process."""
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]


def _neighbour(name: str) -> Any:
    """A module of this folder, which is a package on SAERL's side and a plain folder on verl's."""
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)
