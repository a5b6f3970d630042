"""A small JSON file that several writers share: who writes says what lies there, and is refused when it does not.

A local store has the kernel's lock for that, an object store conditional PUTs (obstore; pyarrow has none).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from plad_ray.artifacts import Store, locked
from plad_ray.errors import PladError

#: obstore asks again when a request fails, and not when its answer breaks off in the middle
BODY_CUT, BODY_TRIES = "response body error", 10
#: what pyarrow calls Google Cloud Storage
GOOGLE = ("gs", "gcs")
#: with it, pyarrow's Google client asks this address (a URL) and no other
EMULATOR = "CLOUD_STORAGE_EMULATOR_ENDPOINT"
#: where obstore takes them from
AMAZONS_KEYS = (
    "environment variables or the machine's role; `aws configure export-credentials --format env` exports a profile"
)
GOOGLES_KEYS = "GOOGLE_APPLICATION_CREDENTIALS, gcloud's application default login or the machine's service account"


class Slot(Protocol):
    def read(self) -> tuple[dict[str, Any], Any] | None:
        """The content and what names it (a tag); None when nothing readable lies there."""

    def swap(self, content: dict[str, Any], before: Any) -> bool:
        """Write when ``before`` (a tag, or None: nothing) is what lies there now; False, and nothing written, else."""


def open_slot(store: Store, name: str) -> Slot:
    return LocalSlot(store, name) if store.local else ObjectSlot(store, name)


class LocalSlot:
    """The tag is the content."""

    def __init__(self, store: Store, name: str):
        self.store, self.name = store, name
        self.lock = Path(store.path(f"{name.rpartition('/')[0]}/.lease.lock"))

    def read(self) -> tuple[dict[str, Any], Any] | None:
        try:
            content = self.store.read_json(self.name)
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return content, content

    def swap(self, content: dict[str, Any], before: Any) -> bool:
        with locked(self.lock):  # check-then-write as one step
            now = self.read()
            if (now and now[1]) != before:
                return False
            self.store.write_json(self.name, content)
            return True


class ObjectSlot:
    """The tag is the object's version (e-tag, generation)."""

    def __init__(self, store: Store, name: str):
        self.store, self.key = _object_store(store.root), name

    def read(self) -> tuple[dict[str, Any], Any] | None:
        import obstore

        for tries_left in reversed(range(BODY_TRIES)):
            try:
                found = obstore.get(self.store, self.key)
                tag = {key: value for key in ("e_tag", "version") if (value := found.meta[key]) is not None}
                return json.loads(bytes(found.bytes())), tag
            except (FileNotFoundError, json.JSONDecodeError):
                return None
            except obstore.exceptions.BaseError as error:
                if not (tries_left and BODY_CUT in str(error)):
                    raise OSError(f"{self.key}: {str(error).splitlines()[0]}") from error
        raise AssertionError("the last try returns or raises")

    def swap(self, content: dict[str, Any], before: Any) -> bool:
        import obstore

        try:
            obstore.put(self.store, self.key, json.dumps(content).encode(), mode="create" if before is None else before)
            return True
        except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
            now = self.read()  # ours, when an answer was lost and the request sent again
            return now is not None and now[0] == content
        except obstore.exceptions.BaseError as error:
            raise OSError(f"{self.key}: {str(error).splitlines()[0]}") from error


def _object_store(root: str) -> Any:
    """obstore's view of a store, where pyarrow's is too. It takes credentials from the environment or the machine, on
    Amazon not from profiles.

    Raises PladError when it finds none.
    """
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    parts = urlsplit(root)
    given = dict(parse_qsl(parts.query))
    google = parts.scheme in GOOGLE
    options = _google(parts.username, given) if google else _amazon(parts.scheme, given)
    url = f"{'gs' if google else parts.scheme}://{parts.netloc}{parts.path}"
    try:
        return from_url(url, client_options={"allow_http": True, "timeout": "30s"}, **options)
    except BaseError as error:
        raise PladError(
            f"runtime.store {root}: {str(error).splitlines()[0]}. Writers of an artifact exclude each other by conditional "
            f"writes, whose credentials come from {GOOGLES_KEYS if google else AMAZONS_KEYS}"
        ) from None


def _google(user: str | None, given: dict[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if emulator := os.environ.get(EMULATOR):
        options["base_url"] = emulator
    elif "endpoint_override" in given:
        options["base_url"] = _endpoint(given)
    if user == "anonymous":
        options["bearer_token"] = ""  # its skip_signature is for reading only
    return options


def _amazon(scheme: str, given: dict[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "endpoint_override" in given:
        options["endpoint"] = _endpoint(given)
    if "region" in given:
        options["region"] = given["region"]
    elif scheme == "s3" and "AWS_DEFAULT_REGION" in os.environ.keys() - {"AWS_REGION"}:
        options["region"] = os.environ["AWS_DEFAULT_REGION"]
    return options


def _endpoint(given: dict[str, str]) -> str:
    return f"{given.get('scheme', 'https')}://{given['endpoint_override']}"
