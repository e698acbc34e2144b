"""A real HTTP server that speaks as much of the OpenAI protocol as a rollout needs, with faults on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sesame-1234"


class Inference(ThreadingHTTPServer):
    """An OpenAI-compatible server whose answers are a function of the request."""

    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.busy = self.most_busy = 0
        self.failures: dict[str, list[int | float]] = {}
        """prompt → what its next requests meet: a status, or seconds of delay (a float)"""
        self.choices_at_once = 100
        self.wants_key = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Inference  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": "policy"}, {"id": "other"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.requests.append(body)
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
            trouble = self.server.failures.get(prompt, [])
            met = trouble.pop(0) if trouble else None
        time.sleep(met if isinstance(met, float) else 0.01)
        with self.server.lock:
            self.server.busy -= 1
        if self.server.wants_key and self.headers.get("Authorization") != f"Bearer {KEY}":
            self.reply(401, {"error": "no such key"})
        elif body["model"] != "policy":
            self.reply(404, {"error": f"no model {body['model']}"})
        elif isinstance(met, int):
            self.reply(met, {"error": "for now"})
        else:
            count = min(body["n"], self.server.choices_at_once)
            texts = [f"{prompt} #{(body['seed'] + i) % 7}" for i in range(count)]
            self.reply(200, {"choices": [{"index": i, "message": {"role": "assistant", "content": text}}
                                         for i, text in enumerate(texts)]})

    def reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up on a slow reply, as it should


@contextmanager
def serving() -> Iterator[Inference]:
    """A server on a free port of the loopback interface."""
    with Inference() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
