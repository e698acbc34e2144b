"""How a stage is remembered: by what goes in, never by where it lies or which run asked.

A stage's cache key is made of its name, its version, and the content of its arguments: the hash of a reference, the
non-incidental fields of a config section, plain values as they are. Paths are left out, but for the workspace's own:
results name places in it, so a copy of a workspace must not take the original's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from saerl_core.artifact import ArtifactRef
from saerl_core.config import Section, content
from saerl_core.hashing import hash_value


@dataclass
class ContentKey(CachePolicy):
    """Cache key over the content of a task's arguments."""

    name: str = ""
    """The stage; two stages with equal arguments share nothing."""
    version: int = 1
    """Raised whenever the stage's code gives other results for the same input."""
    of: tuple[str, ...] | None = None
    """The arguments that count. Default: all."""
    workspace: str = ""
    """Where the results lie."""

    def compute_key(self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any],
                    **kwargs: Any) -> str:
        """The key: `<stage>-<hash>`."""
        names = sorted(inputs) if self.of is None else self.of
        values = {name: _content(inputs[name]) for name in names}
        return f"{self.name}-{hash_value([self.version, self.workspace, values])}"


def _content(value: Any) -> Any:
    match value:
        case ArtifactRef():
            return value.sha256
        case Section():
            return _content(content(value))
        case Path():
            return None
        case dict():
            return {str(key): _content(item) for key, item in value.items()}
        case list() | tuple():
            return [_content(item) for item in value]
        case _:
            return value


P = ParamSpec("P")
R = TypeVar("R")


def stage(name: str, version: int, *, of: tuple[str, ...] | None = None,
          run_name: str | None = None) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a stage: a Prefect task whose result is kept as JSON under its content key.

    JSON, not pickle: a reference is validated when it is read back, so what it names is there and intact, or the
    stage runs again.
    """
    return task(name=name, cache_policy=ContentKey(name=name, version=version, of=of), persist_result=True,
                result_serializer="json", task_run_name=run_name)


def keep_results(stage: Task[P, R], root: Path) -> Task[P, R]:
    """The stage with its results kept in a workspace: they live and die with what they refer to."""
    kept = stage.with_options(result_storage=root / "results")
    if not isinstance(stage.cache_policy, ContentKey):
        return kept
    return kept.with_options(cache_policy=replace(stage.cache_policy, workspace=str(root.resolve())))
