"""What SAERL tells the Prefect server: events, `saerl.<kind>.<verb>` on the resource `saerl.<kind>.<target>`.

Sent over HTTP and answered, unlike Prefect's own `emit_event`, which hands an event to a background thread: a change
that the server did not take must not count as told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import httpx
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource

from saerl_core.errors import ServerError

_UNREACHABLE = "Failed to reach API"
"""How Prefect's client begins when it finds no server."""

Kind = Literal["data", "sae", "manifest"]


@contextmanager
def answered(then: str) -> Iterator[None]:
    """What Prefect's client raises where its server is away, or refuses, in one line.

    Args:
        then: What to do once it answers again.

    Raises:
        ServerError: it does not answer, or refuses.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        said = f"{error.response.status_code} {error.response.reason_phrase} for {error.request.url.path}"
        raise ServerError(f"the Prefect server refuses: {said}; look at PREFECT_API_URL and PREFECT_API_AUTH_STRING, "
                          f"then {then}") from error
    except (httpx.TransportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(_UNREACHABLE):
            raise
        raise ServerError(f"the Prefect server does not answer ({error}): start it, then {then}") from error


def emit(kind: Kind, verb: Literal["changed", "published"], target: str, *, path: str, payload: dict[str, Any]) -> None:
    """Tell the Prefect server of a change.

    Args:
        kind: What changed.
        verb: What happened to it.
        target: `name` of the config that depends on it.
        path: Where it lies.
        payload: JSON values: hashes before and after, ids.

    Raises:
        ServerError: the server did not take it.
    """
    resource = Resource({"prefect.resource.id": resource_id(kind, target), "prefect.resource.name": f"{target} {kind}",
                         "saerl.target": target, "saerl.path": path})
    event = Event(event=f"saerl.{kind}.{verb}", resource=resource, payload=payload)
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except httpx.HTTPError as error:
        raise ServerError(f"{event.event}: the Prefect server did not take it: {error}") from error


def resource_id(kind: Kind, target: str) -> str:
    """The resource that triggers in `deployments/prefect.yaml` match."""
    return f"saerl.{kind}.{target}"
