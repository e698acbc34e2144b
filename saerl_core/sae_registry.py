"""What `features.sae` names → a folder in sae-lens's format: a folder as it is, or `sae-lens:RELEASE/SAE_ID` from
sae-lens's registry.

The registry is a file that ships with sae-lens, so whether a name exists can be told without a network. The download
goes to the hub's cache, in whatever format the release has; it is converted once, to safetensors in the workspace.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saerl_core import locations
from saerl_core.artifact import settle, staging
from saerl_core.errors import ConfigError, ModelError
from saerl_core.models import UNREADABLE
from saerl_core.sae_spec import SaeSpec, parse_spec, tidy

PREFIX = "sae-lens:"
_OFFLINE_CONFIGS = {"gemma_2", "qwen_scope", "deepseek_r1"}
"""Formats whose shapes sae-lens tells from names alone."""


@dataclass(frozen=True)
class Entry:
    """What the registry says of an SAE, without a download."""

    release: str
    sae_id: str
    repository: str
    model: str
    """The model it was trained on, by hub id or TransformerLens name."""
    spec: SaeSpec | None
    """None where only the download tells."""
    explained_variance: float | None
    """None where it is not stated."""


def is_registered(name: str) -> bool:
    """True where a name means the registry."""
    return name.startswith(PREFIX)


def look_up(name: str) -> Entry:
    """The registry's entry of `sae-lens:RELEASE/SAE_ID`.

    Raises:
        ConfigError: there is no such release or SAE; names the nearest ones.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, slash, sae_id = name.removeprefix(PREFIX).partition("/")
    if not slash or not release or not sae_id:
        raise ConfigError(f"features.sae = {name!r}: expected {PREFIX}RELEASE/SAE_ID")
    directory = get_pretrained_saes_directory()
    if release not in directory:
        raise ConfigError(f"features.sae = {name!r}: sae-lens knows no release {release!r}; "
                          f"{_near(release, directory)}")
    found = directory[release]
    if sae_id not in found.saes_map:
        raise ConfigError(f"features.sae = {name!r}: release {release!r} has no SAE {sae_id!r}; "
                          f"{_near(sae_id, found.saes_map)}")
    explained = found.expected_var_explained.get(sae_id, 1.0)
    return Entry(release, sae_id, found.repo_id, found.model, _known_spec(name, release, sae_id),
                 explained if explained < 1 else None)  # 1 stands for unknown


def _near(name: str, known: Any) -> str:
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"near it: {', '.join(nearest)}" if nearest else f"it has {len(known)}, for example {next(iter(known))}"


def _known_spec(name: str, release: str, sae_id: str) -> SaeSpec | None:
    from sae_lens.loading.pretrained_sae_loaders import get_conversion_loader_name, load_sae_config_from_huggingface

    if get_conversion_loader_name(release) not in _OFFLINE_CONFIGS:
        return None
    return parse_spec(load_sae_config_from_huggingface(release, sae_id), name)


def find(name: str, base: Path, workspace: Path) -> Path | None:
    """The folder of an SAE; None for a registered one that has not been downloaded.

    Raises:
        ConfigError: see `look_up`.
    """
    if not is_registered(name):
        return locations.resolve(name, base)
    folder = _folder(look_up(name), workspace)
    return folder if folder.is_dir() else None


def fetch(name: str, base: Path, workspace: Path) -> Path:
    """The folder of an SAE, downloaded and converted where it must be.

    Raises:
        ConfigError: see `look_up`.
        ModelError: the hub does not give it, or sae-lens cannot read it.
    """
    folder = find(name, base, workspace)
    if folder is not None:
        return folder
    from sae_lens import SAE

    entry = look_up(name)
    folder = _folder(entry, workspace)
    try:
        sae = SAE.from_pretrained(entry.release, entry.sae_id)
    except UNREADABLE as error:
        raise ModelError(f"{name}: the hub does not give {entry.repository}, or sae-lens cannot read it: "
                         f"{' '.join(str(error).split())[:200]}") from error
    if entry.explained_variance is not None:
        sae.cfg.metadata.heldout_fvu = round(1 - entry.explained_variance, 6)
    with staging(folder.parent) as staged:
        tidy(*sae.save_model(staged))
        staged.chmod(0o755)
        settle(staged, folder)
    return folder


def _folder(entry: Entry, workspace: Path) -> Path:
    return workspace / "saes" / entry.release / entry.sae_id.replace("/", "--")
