"""An OpenAI-compatible server on loopback that records what it is asked and fails on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    at: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Fault:
    """``status`` 0 cuts the connection; ``body`` None is an error of the protocol; ``seconds`` pass before the answer."""

    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0


class Server:
    """``fault(number, body)``: what goes wrong with the number-th request, if anything."""

    def __init__(self, fault: Callable[[int, dict[str, Any]], Fault | None] | None = None, seconds: float = 0):
        self.fault, self.seconds = fault or (lambda number, body: None), seconds
        self.asked: list[Asked] = []
        self.answered: list[int] = []  # seeds of the requests that got an answer
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    number = len(server.asked)
                    server.asked.append(
                        Asked(time.time(), self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                    )
                    server.busy += 1
                    server.most_busy = max(server.most_busy, server.busy)
                try:
                    self._answer(body, server.fault(number, body) or Fault(seconds=server.seconds))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # whoever asked is gone
                finally:
                    with server.lock:
                        server.busy -= 1

            def _answer(self, body: dict[str, Any], fault: Fault) -> None:
                time.sleep(fault.seconds)
                if fault.status == 0:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{")
                    self.close_connection = True
                    return
                good = fault.status == 200 and fault.body is None
                text = json.dumps(answer(body)) if good else fault.body
                text = text if text is not None else json.dumps({"error": {"message": f"fault {fault.status}"}})
                self.send_response(fault.status)
                for name, value in {"Content-Type": "application/json", **fault.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())
                if good:
                    with server.lock:
                        server.answered.append(body.get("seed", -1))

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """The prompt's words backwards; 10 prompt tokens, and as many generated ones as there are words."""
    prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    said = " ".join(reversed(prompt.split()))
    choice = {"message": {"role": "assistant", "content": said}} if "messages" in body else {"text": said}
    usage = {"prompt_tokens": 10, "completion_tokens": len(said.split())}
    return {"choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": usage}


@contextmanager
def serving(*arguments: Any, **more: Any):
    server = Server(*arguments, **more)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
