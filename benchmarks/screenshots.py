"""Pictures of the Prefect UI for the docs: a real server, a real curation of the toy, a real browser.

    python -m benchmarks.screenshots [docs/ui]

Needs Chromium (`apt-get install chromium`). Takes about three minutes.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from benchmarks.served import served, switch_off, until

WIDTH = 1400
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
          "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
          "--remote-debugging-port=0")
_SETTLE_SECONDS = 5.0
"""Until a page has its data and its graph stands still."""
_FIND = """(() => {
  const found = [...document.querySelectorAll('*')].filter(e => !e.children.length && e.textContent.trim() === %s)[0];
  const box = found.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
})()"""


@dataclass(frozen=True)
class Picture:
    """A page of the UI, and how much of it to show."""

    name: str
    page: str
    """address below the UI's root"""
    height: int
    tab: str | None = None
    """a tab to open first"""


class Page:
    """One page of a headless Chromium, steered over the DevTools protocol."""

    def __init__(self, socket: Connection) -> None:
        self._socket, self._calls = socket, 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._calls:
            pass  # an event
        assert "error" not in answer, answer
        return answer["result"]


@contextmanager
def browser(program: str) -> Iterator[Page]:
    """A fresh browser with one empty page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen([program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
                                   stderr=subprocess.DEVNULL)
        try:
            port_file = Path(profile, "DevToolsActivePort")
            port = until(lambda: port_file.read_text().split("\n")[0] if port_file.exists() else None, 30)
            pages = httpx.get(f"http://127.0.0.1:{port}/json/list").raise_for_status().json()
            address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            with connect(address, max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait()


def shoot(page: Page, root: str, picture: Picture, path: Path) -> None:
    """Take a picture, at most 256 colours."""
    page.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=picture.height, deviceScaleFactor=1,
              mobile=False)
    page.call("Page.navigate", url=root + picture.page)
    time.sleep(_SETTLE_SECONDS)
    if picture.tab is not None:
        _click(page, picture.tab)
        time.sleep(_SETTLE_SECONDS)
    data = base64.b64decode(page.call("Page.captureScreenshot", format="png")["data"])
    Image.open(io.BytesIO(data)).convert("RGB").quantize(256).save(path, optimize=True)


def _click(page: Page, text: str) -> None:
    """Click what bears a text."""
    found = page.call("Runtime.evaluate", expression=_FIND % json.dumps(text), returnByValue=True)
    x, y = found["result"]["value"]
    for event in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=event, x=x, y=y, button="left", clickCount=1)


def pictures(api: httpx.Client) -> Iterator[Picture]:
    """Make runs, and say what to show of them."""
    first = _curate(api)
    again = _curate(api)
    yield Picture("run", f"/runs/flow-run/{first}", 570)
    yield Picture("extraction", f"/runs/flow-run/{first}", 2080, tab="Task Runs")
    yield Picture("cached", f"/runs/flow-run/{again}", 1500, tab="Task Runs")
    body = {"artifacts": {"key": {"any_": ["curation"]}, "flow_run_id": {"any_": [first]}}}
    artifact = api.post("/artifacts/filter", json=body).raise_for_status().json()[0]
    yield Picture("artifact", f"/artifacts/artifact/{artifact['id']}", 1710)
    yield Picture("form", f"/deployments/deployment/{_deployment(api)}/run", 1100)


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
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        parser.error("no Chromium found; `apt-get install chromium` brings one")
    folder.mkdir(parents=True, exist_ok=True)
    with _toy_served() as api, browser(program) as page:
        root = str(api.base_url).removesuffix("/api/").removesuffix("/api")
        for picture in pictures(api):
            path = folder / f"{picture.name}.png"
            shoot(page, root, picture, path)
            sys.stdout.write(f"{path}, {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
