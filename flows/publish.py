"""Links between runs and what they give: tags and the name on the flow run, a record beside the manifest, an event."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from flows.events import emit
from flows.stages import StageRecord
from saerl_core import published
from saerl_core.config import RunConfig


def tag_run(*tags: str, name: str | None = None) -> None:
    """Add tags to the current flow run, and perhaps rename it."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    with get_client(sync_client=True) as client:
        known = client.read_flow_run(context.flow_run.id)
        client.update_flow_run(known.id, tags=sorted({*known.tags, *tags}), name=name)


def publish(config: RunConfig, result: Path, stages: Iterable[StageRecord], parts: Iterable[Path] = ()) -> None:
    """Keep the current flow run beside its result, and what the result is made of.

    Args:
        config: Names the workspace and the target.
        result: A manifest's folder, or a training run's.
        stages: The stages that led to it.
        parts: What it is made of beside their artifacts.
    """
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        run = published.Run(flow_run_id=str(context.flow_run.id), name=context.flow_run.name, target=config.name,
                            at=datetime.now(UTC).isoformat(timespec="seconds"))
        made_of = [*parts, *(Path(path) for entry in stages for path in entry.artifacts)]
        published.note(config.root, result.name, made_of, run)


def publish_manifest(config: RunConfig, manifest: Path, stages: Iterable[StageRecord],
                     segments: Iterable[Path]) -> None:
    """`publish`, and the event `saerl.manifest.published` where the manifest is new to this target."""
    tag_run(f"manifest:{manifest.name}", name=f"curate · {config.name} · {manifest.name}")
    record = published.read_or_none(config.root, manifest.name)
    if record is None or config.name not in {run.target for run in record.runs}:
        # before the record: an event that the server did not take is sent by the next run
        emit("manifest", "published", config.name, path=str(manifest), payload={"manifest": manifest.name})
    publish(config, manifest, stages, segments)
