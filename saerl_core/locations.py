"""Where things named in a config are: relative to the config file, or shipped with the package (`saerl:...`)."""

from __future__ import annotations

from pathlib import Path

from saerl_core.errors import ConfigError

PACKAGED_PREFIX = "saerl:"
_PACKAGED_ROOT = Path(__file__).parent


def is_local(name: str) -> bool:
    """True where `name` is spelled as a path rather than as a hub id such as `Qwen/Qwen2.5-Math-1.5B`."""
    return name.startswith((PACKAGED_PREFIX, "/", "./", "../", "~")) or Path(name).exists()


def resolve(name: str, base: Path) -> Path:
    """The path that a config's `name` means.

    `saerl:toy/lm` is a file or folder that ships with the package; a relative path is relative to `base`, the
    folder of the config file, so that a config means the same from every working directory.

    Raises:
        ConfigError: a `saerl:` name that leaves the package's assets, or what is no path.
    """
    if name.startswith(PACKAGED_PREFIX):
        room, _, rest = name.removeprefix(PACKAGED_PREFIX).partition("/")
        assets = _PACKAGED_ROOT / room / "assets"
        path = (assets / rest).resolve()
        if not assets.is_dir() or not path.is_relative_to(assets.resolve()):
            raise ConfigError(f"{name!r} names nothing that ships with SAERL; known: saerl:toy/lm, saerl:toy/sae, "
                              "saerl:toy/train.jsonl.gz, saerl:toy/heldout.jsonl.gz")
        return path
    try:
        return (base / Path(name).expanduser()).resolve()
    except (RuntimeError, ValueError) as error:  # no such user, a null character, links in a circle
        raise ConfigError(f"{name!r} is no path: {error}") from error
