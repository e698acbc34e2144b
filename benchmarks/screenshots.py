"""Pictures of the Prefect UI for the docs: a real server, a real curation of the toy, a real browser.

    python -m benchmarks.screenshots [docs/ui]

Needs Chromium (`apt-get install chromium`). Takes about three minutes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.served import served, switch_off, until

WIDTH = 1400
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
          "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
          "--virtual-time-budget=20000")
"""Virtual time: the page's own clock runs ahead until its requests are answered and its graph has settled."""


def shoot(browser: str, url: str, path: Path, height: int) -> None:
    """A picture of a page, at most 256 colours."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run([browser, *_FLAGS, f"--user-data-dir={profile}", f"--window-size={WIDTH},{height}",
                        f"--screenshot={path}", url], check=True, capture_output=True, timeout=120)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def pictures(api: httpx.Client) -> Iterator[tuple[str, str, int]]:
    """(name, address below the UI's root, height) of each picture, after the runs that they show."""
    first = _curate(api)
    again = _curate(api)
    yield "run", f"/runs/flow-run/{first}", 900
    yield "extraction", f"/runs/flow-run/{first}?tab=TaskRuns", 1250
    yield "cached", f"/runs/flow-run/{again}?tab=TaskRuns", 1250
    body = {"artifacts": {"key": {"any_": ["curation"]}, "flow_run_id": {"any_": [first]}}}
    artifact = api.post("/artifacts/filter", json=body).raise_for_status().json()[0]
    yield "artifact", f"/artifacts/artifact/{artifact['id']}", 1800
    yield "form", f"/deployments/deployment/{_deployment(api)}/run", 1100


def _curate(api: httpx.Client) -> str:
    """Run the deployment, and wait for its end."""
    run = api.post(f"/deployments/{_deployment(api)}/create_flow_run", json={}).raise_for_status().json()["id"]

    def ended() -> dict[str, Any] | None:
        found = api.get(f"/flow_runs/{run}").raise_for_status().json()
        return found if found["end_time"] else None

    assert until(ended, 600)["state_type"] == "COMPLETED"
    return run


def _deployment(api: httpx.Client) -> str:
    return api.get("/deployments/name/curate/toy").raise_for_status().json()["id"]


@contextmanager
def _toy_served() -> Iterator[httpx.Client]:
    with tempfile.TemporaryDirectory(prefix="saerl-screenshots-") as folder:
        subprocess.run([sys.executable, "-m", "flows.cli", "init", str(Path(folder, "saerl.yaml"))], check=True,
                       capture_output=True)
        with served(Path(folder, "saerl.yaml")) as api:
            switch_off(api, "train")
            yield api


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/ui"))
    folder = parser.parse_args().folder
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        parser.error("no Chromium found; `apt-get install chromium` brings one")
    folder.mkdir(parents=True, exist_ok=True)
    with _toy_served() as api:
        root = str(api.base_url).removesuffix("/api/").removesuffix("/api")
        for name, page, height in pictures(api):
            shoot(browser, root + page, folder / f"{name}.png", height)
            sys.stdout.write(f"{folder / name}.png, {(folder / f'{name}.png').stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
