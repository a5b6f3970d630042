"""What the prompts are made from, as content: the same data elsewhere or under another name is the same artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from plad_ray.config import Data
from plad_ray.data import hub, pools
from plad_ray.data.reading import File


def identity(data: Data) -> dict[str, Any]:
    """JSON identity of ``data``'s source; called when the graph is built, so that what is missing fails there.

    Files: SHA-256 of each in reading order, by split. Hub: name and commit (offline: the cached one).
    Demo: nothing, its generator is code.
    """
    pools.check(data)
    if data.source == "demo":
        return {}
    where = pools.location(data)
    if where != "hub":
        return {where: {split: _hashes(files) for split, files in pools.given_files(data).items()}}
    name = pools.hub_name(data)
    folder = Path(name).expanduser()
    if folder.is_dir():  # names count here: `datasets` tells splits apart by them
        files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
        return {"hub": dict(zip([f.relative_to(folder).as_posix() for f in files], _hashes(files), strict=True))}
    return {"hub": name, "commit": hub.resolve(name, data.revision)}


def _hashes(files: Sequence[File]) -> list[str]:
    return [_sha256(file) if isinstance(file, Path) else _remote_sha256(file) for file in files]


def _sha256(file: File) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_remote_sha256 = lru_cache(maxsize=1024)(_sha256)  # every plan of a study asks, and each time it would be downloaded
