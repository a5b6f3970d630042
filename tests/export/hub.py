"""A stand-in for the Hub's HTTP API: what create_repo and upload_folder ask of it, kept in memory."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stand_in_7c1"


class Hub(ThreadingHTTPServer):
    """``repos``: (kind, name) -> {file: content}, ``private`` of each, ``asked``: every request line."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[tuple[str, str], bool] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials in Authorization header"}, 401)
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/api/(model|dataset)s/(.+)/(preupload|commit)/main", self.path.partition("?")[0]):
            kind, repo, what = found.groups()
            return self._preupload(json.loads(body)) if what == "preupload" else self._commit(kind, repo, body)
        return self._answer({"error": f"the stand-in does not know {self.path}"}, 404)

    def do_GET(self) -> None:
        self.server.asked.append(f"GET {self.path}")
        if found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/?]+)(/revision/main)?(\?.*)?", self.path):
            kind, repo = found.group(1), found.group(2)
            if (kind, repo) in self.server.repos:
                return self._answer({"id": repo, "sha": "0" * 40, "siblings": []})
        return self._answer({"error": "not here"}, 404)

    def do_PUT(self) -> None:
        self.server.asked.append(f"PUT {self.path}")
        self.server.large[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def _create(self, asked: dict[str, Any]) -> None:
        key = (asked.get("type", "model"), f"{asked['organization']}/{asked['name']}")
        if key in self.server.repos:
            return self._answer({"error": "You already created this repo", "url": f"{self.server.url}/{key[1]}"}, 409)
        self.server.repos[key], self.server.private[key] = {}, asked.get("visibility") == "private"
        return self._answer({"url": f"{self.server.url}/{key[1]}", "name": key[1], "id": key[1]})

    def _preupload(self, asked: dict[str, Any]) -> None:
        """Weights go to large-file storage, as on the real Hub; the rest is in the commit itself."""
        mode = {True: "lfs", False: "regular"}
        files = [
            {
                "path": f["path"],
                "uploadMode": mode[f["path"].endswith(".safetensors")],
                "shouldIgnore": False,
                "oid": None,
            }
            for f in asked["files"]
        ]
        self._answer({"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.server.url}/large/{o['oid']}", "header": {}}}}
            for o in asked["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, kind: str, repo: str, body: bytes) -> None:
        if (kind, repo) not in self.server.repos:
            return self._answer({"error": "Repository not found"}, 404)
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.repos[kind, repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.repos[kind, repo][value["path"]] = self.server.large[value["oid"]]
        return self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.url}/{repo}/commit/0"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
