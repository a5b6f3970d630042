"""A proxy before an object store's server that fails on demand."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

#: Amazon's; Google's clients look at the status alone
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"

Kind = Literal["503", "cut", "half", "stall"]


@dataclass
class Faults:
    """What goes wrong: a share of all requests, by chance; every request whose method and path ``always`` names; and the
    first so many that ``first`` names, which are refused.

    503: refused. cut: the connection ends without an answer. half: half of the body goes through, to the server where
    something is written and else to the client, then it is cut.
    stall: nothing for ``stall_seconds``, then cut.
    """

    share: float = 0.0
    kinds: tuple[Kind, ...] = ("503", "cut", "half")
    always: tuple[str, str] | None = None
    first: tuple[str, str, int] | None = None
    stall_seconds: float = 5.0
    seed: int = 0
    count: int = 0
    requests: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def draw(self, method: str, path: str) -> Kind | None:
        with self.lock:
            self.requests += 1
            if self.first is not None and method == self.first[0] and self.first[1] in path:
                left = self.first[2] - 1
                self.first = (*self.first[:2], left) if left else None
                self.count += 1
                return "503"
            named = self.always is not None and method == self.always[0] and self.always[1] in path
            if not named and self.random.random() >= self.share:
                return None
            self.count += 1
            return self.random.choice(self.kinds)


def _handler(target: tuple[str, int], faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self._body()
            kind = faults.draw(self.command, self.path)
            if kind == "503":
                self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
                return
            if kind == "stall":
                time.sleep(faults.stall_seconds)
            if kind in ("cut", "stall"):
                self.close_connection = True
                return
            connection = HTTPConnection(*target, timeout=60)
            dropped = ("expect", "transfer-encoding", "content-length")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
            if kind == "half" and self.command == "PUT":
                connection.request(
                    "PUT", self.path, body[: len(body) // 2], headers | {"Content-Length": str(len(body))}
                )
                connection.close()
                self.close_connection = True
                return
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            self._answer(answer.status, headers, content, half=kind == "half")
            connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, status: int, headers: dict[str, str], body: bytes, half: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD" and status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if half else body)
            if half:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    return Proxy


@contextmanager
def failing(target: tuple[str, int], faults: Faults) -> Iterator[str]:
    """The address (host:port) of the proxy before ``target``."""
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(target, faults))
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
