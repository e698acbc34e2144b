"""What an outsider would look for: sockets that others can reach, and secrets that were written down."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

SECRETS = {"SAERL_TEST_API_KEY": "planted-key-6b1f9c", "OPENAI_API_KEY": "planted-openai-77aa31",
           "HF_TOKEN": "hf_planted0c55e2", "WANDB_API_KEY": "planted-wandb-9d20bb"}
"""Environment variables to plant."""


def holding_secrets(folder: Path) -> list[str]:
    """Files below a folder that hold a planted secret."""
    secrets = [value.encode() for value in SECRETS.values()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if any(secret in path.read_bytes() for secret in secrets)]


def addresses_heard(processes: Iterable[psutil.Process]) -> set[str]:
    """The addresses on which processes listen; IPv4 ones that are spelt as IPv6 in their usual form."""
    found: set[str] = set()
    for process in processes:
        with suppress(psutil.Error):
            found |= {socket.laddr.ip.removeprefix("::ffff:") for socket in process.net_connections("inet")
                      if socket.status == psutil.CONN_LISTEN}
    return found


def words(processes: Iterable[psutil.Process]) -> set[str]:
    """What stands on the command lines of those that still live."""
    found: set[str] = set()
    for process in processes:
        with suppress(psutil.Error):
            found |= set(process.cmdline())
    return found
