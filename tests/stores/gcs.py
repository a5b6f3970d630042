"""What of Google Cloud Storage plad_ray takes, on loopback: of the JSON API, which pyarrow speaks, and of the XML API, which
obstore does. An object has a generation, which no other has; both write under ``if generation match``.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.stores.faults import Faults, failing

BUCKET = "bucket"
TIME = "2026-01-01T00:00:00Z"


class Bucket:
    """``objects``: (content, generation) by name."""

    def __init__(self, objects: dict[str, bytes]):
        self.generations, self.lock = count(1001), threading.Lock()
        self.objects = {name: (content, next(self.generations)) for name, content in objects.items()}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.metadata: dict[str, dict[str, str]] = {}  # by which pyarrow knows the object that stands for a folder

    def put(self, name: str, content: bytes, match: str | None = None) -> int | None:
        """Its generation; None, and nothing written, when that which is there is not ``match`` ("0": nothing)."""
        with self.lock:
            if match is not None and int(match) != self.objects.get(name, (b"", 0))[1]:
                return None
            self.objects[name] = (content, next(self.generations))
            return self.objects[name][1]

    def described(self, name: str) -> dict[str, Any]:
        content, generation = self.objects[name]
        numbers = {"size": str(len(content)), "generation": str(generation), "metageneration": "1"}
        known = {"kind": "storage#object", "name": name, "bucket": BUCKET, "updated": TIME, "timeCreated": TIME}
        return {**known, **numbers, "metadata": self.metadata.get(name, {})}


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Api(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _route(self) -> None:
            parts = urlsplit(self.path)
            self.asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
            announced = int(self.headers.get("Content-Length", 0))
            self.body = self.rfile.read(announced)
            if len(self.body) < announced:  # who sent it has gone
                self.close_connection = True
                return
            routes = {
                rf"/storage/v1/b/{BUCKET}": f"bucket_{self.command}",
                rf"/storage/v1/b/{BUCKET}/o": f"objects_{self.command}",
                rf"/storage/v1/b/{BUCKET}/o/(.+)": f"object_{self.command}",
                rf"/upload/storage/v1/b/{BUCKET}/o": f"upload_{self.command}",
                rf"/{BUCKET}/(.+)": f"xml_{self.command}",
            }
            for pattern, method in routes.items():
                if found := re.fullmatch(pattern, parts.path):
                    getattr(self, method)(*map(unquote, found.groups()))
                    return
            self._answer(404)

        do_GET = do_PUT = do_POST = do_DELETE = _route

        def bucket_GET(self) -> None:  # noqa: N802
            self._answer(200, {"kind": "storage#bucket", "name": BUCKET})

        def objects_GET(self) -> None:  # noqa: N802
            names = sorted(name for name in bucket.objects if name.startswith(self.asked.get("prefix", "")))
            self._answer(200, {"kind": "storage#objects", "items": [bucket.described(name) for name in names]})

        def object_GET(self, name: str) -> None:  # noqa: N802
            if name not in bucket.objects:
                self._answer(404, {"error": {"code": 404, "message": "no such object"}})
            elif "alt" in self.asked:
                self._content(name)
            else:
                self._answer(200, bucket.described(name))

        def object_DELETE(self, name: str) -> None:  # noqa: N802
            self._answer(404 if bucket.objects.pop(name, None) is None else 204)

        def upload_POST(self) -> None:  # noqa: N802
            if self.asked["uploadType"] == "multipart":
                boundary = re.search("boundary=(.+)", self.headers["Content-Type"])[1].strip('"').encode()
                described, content = (p.partition(b"\r\n\r\n")[2][:-2] for p in self.body.split(b"--" + boundary)[1:3])
                self._written(self.asked["name"], content, json.loads(described).get("metadata"))
                return
            upload = str(len(bucket.uploads))
            bucket.uploads[upload] = (self.asked["name"], bytearray())
            where = f"http://{self.headers['Host']}/upload/storage/v1/b/{BUCKET}/o?upload_id={upload}"
            self._answer(200, {}, Location=where)

        def upload_PUT(self) -> None:  # noqa: N802
            """The next bytes of an upload, or none: a question how many are there."""
            name, content = bucket.uploads[self.asked["upload_id"]]
            first, total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"]).groups()
            if first is not None:
                content[int(first) :] = self.body
            if total == str(len(content)):
                self._written(name, bytes(content))
            else:
                self._answer(308, **({"Range": f"bytes=0-{len(content) - 1}"} if content else {}))

        def xml_GET(self, name: str) -> None:  # noqa: N802
            if name in bucket.objects:
                self._content(name)
            else:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

        def xml_PUT(self, name: str) -> None:  # noqa: N802
            generation = bucket.put(name, self.body, self.headers.get("x-goog-if-generation-match"))
            if generation is None:
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            else:
                self._answer(200, **{"ETag": f'"{generation:x}"', "x-goog-generation": str(generation)})

        def _written(self, name: str, content: bytes, metadata: dict[str, str] | None = None) -> None:
            if bucket.put(name, content, self.asked.get("ifGenerationMatch")) is None:
                self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
                return
            bucket.metadata[name] = metadata or {}
            self._answer(200, bucket.described(name))

        def _content(self, name: str) -> None:
            content, generation = bucket.objects[name]
            headers = {"ETag": f'"{generation:x}"', "x-goog-generation": str(generation)}
            headers["Last-Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked is None:
                self._answer(200, content, **headers)
                return
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._answer(416 if first >= len(content) else 206, content[first : last + 1], **headers)

        def _answer(self, status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Api


@contextmanager
def gcs(objects: dict[str, bytes], faults: Faults | None = None) -> Iterator[str]:
    """The URI of a bucket of these objects, with ``{}`` where the path in it goes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(Bucket(objects)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        with failing(("127.0.0.1", server.server_port), faults or Faults()) as address:
            options = f"endpoint_override={address}&scheme=http&retry_limit_seconds=60"
            yield f"gs://anonymous@{BUCKET}/{{}}?{options}"
    finally:
        server.shutdown()
        server.server_close()
