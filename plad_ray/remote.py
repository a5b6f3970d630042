"""Files in an object store that no run has made: data, models and adapters that somebody put there."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from plad_ray import artifacts
from plad_ray.artifacts import Store, copy_once, fingerprint
from plad_ray.errors import PladError

#: bytes that reading a file from its beginning asks for at a time
READ_AHEAD = 1 << 23
#: parts of a glob as regular expressions
GLOB = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*"}

_store = lru_cache(maxsize=64)(Store)


def is_uri(path: str) -> bool:
    """Whether ``path`` names a pyarrow file system, as s3://… and gs://… do."""
    return "://" in path


@dataclass(frozen=True)
class RemoteFile:
    """The file ``name`` below the URI ``root``, read as a Path is; ``stamp`` (size and time) is other when it changed."""

    root: str
    name: str
    stamp: tuple[int, int | None]

    def __str__(self) -> str:
        return f"{self.root.partition('?')[0].rstrip('/')}/{self.name}"

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Its bytes as they are, from the beginning."""
        path = _store(self.root).path(self.name)
        stream: Any = _store(self.root).fs.open_input_stream(path, compression=None, buffer_size=READ_AHEAD)
        return io.BufferedReader(stream)

    def open_anywhere(self) -> Any:
        """A pyarrow file to read from any place."""
        return _store(self.root).fs.open_input_file(_store(self.root).path(self.name))


@dataclass(frozen=True)
class RemoteFolder:
    """A folder as it was when it was listed: name, size and version of each of its files."""

    option: str
    uri: str
    files: tuple[tuple[str, int, str], ...]

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.files]

    def local_folder(self) -> Path:
        """This machine's copy, whose path is of what was listed and so the same on every machine."""
        name = PurePosixPath(self.uri.partition("?")[0]).name
        return self.copy_to(Path(artifacts.COPIES) / f"{name}-{fingerprint(self.files)[:16]}" / name)

    def copy_to(self, target: Path) -> Path:
        """Copy it, unless it is there. Raises PladError when the files are not those that were listed."""
        return copy_once(target, self._download)

    def _download(self, target: Path) -> None:
        with _named(self.option, self.uri):
            _store(self.uri).download("", target)
        if _listed(self.option, self.uri) != self.files:
            raise PladError(f"{self.option} {self.uri}: its files were changed while it was used; start the run again")


@lru_cache(maxsize=64)
def folder(option: str, uri: str, check: Callable[[str, list[str]], None]) -> RemoteFolder:
    """The folder at ``uri`` after ``check`` of its file names, listed once a process: all stages of a run see one version.

    ``option`` is the key of the experiment file, for messages. Raises PladError when it cannot be read, and what ``check``
    raises.
    """
    found = RemoteFolder(option, uri, _listed(option, uri))
    check(f"{option} {uri}", found.names)
    return found


def find(uri: str, option: str) -> tuple[bool, list[RemoteFile]]:
    """Whether ``uri`` is a folder, and the files that it stands for: itself, all below it, or those that a glob matches.

    ``option`` is the key of the experiment file, for messages. Raises PladError when it cannot be read.
    """
    head, _, query = uri.partition("?")
    parts = head.rstrip("/").split("/")
    fixed = next((i for i, part in enumerate(parts) if "*" in part), None)

    def below(root: list[str]) -> str:
        return "/".join(root) + (f"?{query}" if query else "")

    with _named(option, uri):
        if fixed is None:
            parent = _store(below(parts[:-1]))
            info = parent.fs.get_file_info(parent.path(parts[-1]))
            if info.is_file:
                return False, [RemoteFile(below(parts[:-1]), parts[-1], (info.size, info.mtime_ns))]
        root, wanted = below(parts[:fixed]), re.compile(".*")
        if fixed is not None:
            pieces = re.split(r"(\*\*/?|\*)", "/".join(parts[fixed:]))
            wanted = re.compile(r"(?!(.*/)?\.)" + "".join(GLOB.get(piece, re.escape(piece)) for piece in pieces))
        infos = _store(root).infos("")
        names = sorted((n for n in infos if wanted.fullmatch(n)), key=lambda name: name.split("/"))
        return fixed is None and bool(names), [RemoteFile(root, n, (infos[n].size, infos[n].mtime_ns)) for n in names]


def _listed(option: str, uri: str) -> tuple[tuple[str, int, str], ...]:
    with _named(option, uri):
        store = _store(uri)
        return tuple((name, i.size, _version(store, i)) for name, i in sorted(store.infos("").items()))


def _version(store: Store, info: pafs.FileInfo) -> str:
    """The time it was written; of S3, whose times are whole seconds, the e-tag."""
    if not isinstance(store.fs, pafs.S3FileSystem):
        return str(info.mtime_ns)
    return store.fs.open_input_file(info.path).metadata()["ETag"].decode()


@contextmanager
def _named(option: str, uri: str) -> Iterator[None]:
    """Errors of the file system as PladErrors that name the key of the experiment file and the URI."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PladError(
            f"{option} {uri}: cannot be read ({reason}); give s3://… or gs://… that is there, and the credentials for it in "
            "the environment"
        ) from None
