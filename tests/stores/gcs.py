"""What of Google Cloud Storage's JSON API reading takes, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


def _handler(objects: dict[str, bytes]) -> type[BaseHTTPRequestHandler]:
    def described(name: str) -> dict[str, Any]:
        times = {"updated": "2026-01-01T00:00:00Z", "timeCreated": "2026-01-01T00:00:00Z"}
        return {"kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(objects[name])), **times}

    class Bucket(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked, name = parse_qs(parts.query), unquote(parts.path.partition("/o/")[2])
            if parts.path.endswith("/b/bucket/o"):
                found = [described(n) for n in objects if n.startswith(asked.get("prefix", [""])[0])]
                self._answer(200, json.dumps({"kind": "storage#objects", "items": found}).encode())
            elif name not in objects:
                self._answer(404, b'{"error": {"code": 404, "message": "no such object"}}')
            else:
                self._answer(200, objects[name] if "alt" in asked else json.dumps(described(name)).encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Bucket


@contextmanager
def gcs(objects: dict[str, bytes]) -> Iterator[str]:
    """The URI of a bucket of these objects, with ``{}`` where the path in it goes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(objects))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        options = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&retry_limit_seconds=5"
        yield f"gs://anonymous@bucket/{{}}?{options}"
    finally:
        server.shutdown()
        server.server_close()
