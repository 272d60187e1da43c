"""A chat endpoint for tests of captions, and the output of a whole run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kineograph.curation.settings import Endpoint

Reply = tuple[int, bytes]
Serve = Callable[[Callable[[dict[str, Any]], Reply]], Endpoint]


def chat_completion(text: object) -> Reply:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server, whose replies another function computes, and returns its settings."""
    servers: list[ThreadingHTTPServer] = []

    def start(reply: Callable[[dict[str, Any]], Reply]) -> Endpoint:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, content = reply({**body, "path": self.path, "key": self.headers.get("Authorization")})
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *words: object) -> None:
                """Log nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return Endpoint(url=f"http://127.0.0.1:{server.server_port}/v1", model="m", tries=3, pause=0, timeout=5)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
