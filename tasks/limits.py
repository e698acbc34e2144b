"""The GPU is taken in turns: work on it holds a slot of the Prefect server's concurrency limit `gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.settings import get_current_settings

from saerl_core.errors import ConfigError

GPU = "gpu"


@contextmanager
def device_slot(device: str) -> Iterator[None]:
    """Hold a slot while a device is used. Nothing is held for a CPU, nor without a server: nobody else waits there.

    A slot whose holder died comes back after five minutes.

    Args:
        device: `cpu` or `cuda`.

    Raises:
        ConfigError: the server gives no slot, most likely because it has no such limit.
    """
    with ExitStack() as held:
        if device != "cpu" and get_current_settings().api.url is not None:
            # strict: a limit that is missing must not pass for one that is free. A server that is away for a while
            # must not end hours of work, though.
            slot = concurrency(GPU, occupy=1, strict=True, raise_on_lease_renewal_failure=False)
            try:
                held.enter_context(slot)
            except ConcurrencySlotAcquisitionError as error:
                raise ConfigError(f"no slot of the Prefect server's concurrency limit {GPU!r} ({error}); where it "
                                  f"has none, make it: prefect gcl create {GPU} --limit 1") from error
        yield
