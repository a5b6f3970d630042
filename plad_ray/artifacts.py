"""Content-addressed artifacts: fingerprint, store, manifest.

An artifact is a folder in a store (local folder, s3://, gs://) named by the content that made it. Its manifest is
written last, as one PUT; a folder without one is unfinished. Nothing here relies on rename semantics of the store.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from plad_ray.errors import PladError

if TYPE_CHECKING:
    from plad_ray.remote import RemoteFile

T = TypeVar("T")
MANIFEST = "manifest.json"
#: rows that streaming reads hold at a time
BATCH_ROWS = 4096
#: where machines keep copies of what lies in an object store; one path for all machines of a cluster
COPIES = os.environ.get("PLAD_COPIES", "/tmp/plad-artifacts")
#: tries of one request to S3, with pauses that double
S3_TRIES = 10
#: seconds without a byte after which an answer is given up
S3_TIMEOUT_S = 30.0
#: what the SDK says, and gives up, when a refusal (503) has a longer text than the file that was asked for
NO_ROOM = "Failed to flush response stream"
S3_OPTIONS = {"region", "scheme", "endpoint_override"}
#: variables that say where the bucket is; without them it is asked for
S3_PLACE = {"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value`` (hex, 64 characters). Raises TypeError on what JSON cannot hold."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class Store:
    """A root folder on any pyarrow filesystem. Paths given to its methods are relative to the root."""

    def __init__(self, root: str):
        if "://" not in root:
            root = str(Path(root).expanduser().resolve())  # workers have another current folder
        self.root = root
        self.fs, base = _s3(root) if root.startswith("s3://") else pafs.FileSystem.from_uri(root)
        self.local = isinstance(self.fs, pafs.LocalFileSystem)
        self.base = str(base).rstrip("/")

    def path(self, name: str) -> str:
        """The filesystem's own path of ``name``."""
        return f"{self.base}/{name}" if name else self.base

    def exists(self, name: str) -> bool:
        return self.fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound

    def files(self, name: str) -> dict[str, int]:
        """Sizes in bytes of all files under ``name``, by path relative to it; empty when there is none."""
        return {path: info.size for path, info in self.infos(name).items()}

    def infos(self, name: str) -> dict[str, pafs.FileInfo]:
        """As ``files``, with all that a listing says."""
        selector = pafs.FileSelector(self.path(name), recursive=True, allow_not_found=True)
        prefix = len(self.path(name)) + 1
        return {i.path[prefix:]: i for i in self.fs.get_file_info(selector) if i.is_file}

    def read_bytes(self, name: str) -> bytes:
        """Of a file that nobody overwrites: pyarrow asks an object store for its size first, then for that many bytes
        (what several writers share is read by plad_ray/slot.py).
        """

        def read() -> bytes:
            with self.fs.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())

        return again(read)

    def write_bytes(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write one file so that readers see all of it or none of it."""
        target = self.path(name)
        if self.local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=Path(target).parent, prefix=".writing-")
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                Path(temporary).replace(target)
            finally:  # on a full disk half a file takes what room there is
                Path(temporary).unlink(missing_ok=True)
        else:  # object stores publish an object when its upload completes
            with self.fs.open_output_stream(target) as stream:
                stream.write(content)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode())

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write ``table`` as one Parquet file, all or nothing."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=2 * BATCH_ROWS)  # readers hold whole row groups
        self.write_bytes(name, sink.getvalue())

    def delete(self, name: str) -> None:
        """The file or folder ``name``, if it is there; another driver may be deleting it, too."""
        info = self.fs.get_file_info(self.path(name))
        with suppress(FileNotFoundError):
            if info.type == pafs.FileType.Directory:
                self.fs.delete_dir(self.path(name))
            elif info.type == pafs.FileType.File:
                self.fs.delete_file(self.path(name))

    def upload(self, source: Path, name: str) -> None:
        """Copy a local folder under ``name``."""
        self.fs.create_dir(self.path(name), recursive=True)
        pafs.copy_files(str(source), self.path(name), destination_filesystem=self.fs)

    def download(self, name: str, target: Path) -> Path:
        """Copy ``name`` into a local folder and return it."""
        target.mkdir(parents=True, exist_ok=True)
        again(lambda: pafs.copy_files(self.path(name), str(target), source_filesystem=self.fs))
        return target


def _s3(root: str) -> tuple[pafs.FileSystem, str]:
    """An S3 file system that outlasts what object stores do under load; ``from_uri`` gives up after three tries.

    Raises ValueError for an option that pyarrow has not (``s3://bucket/path?endpoint_override=…&scheme=http``).
    """
    parts = urlsplit(root)
    options: dict[str, Any] = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    if unknown := set(options) - S3_OPTIONS:
        raise ValueError(f"unknown option {min(unknown)} (known: {', '.join(sorted(S3_OPTIONS))})")
    if not options.keys() & {"region", "endpoint_override"} and not S3_PLACE & os.environ.keys():
        options["region"] = pafs.resolve_s3_region(parts.netloc)
    retry = pafs.AwsStandardS3RetryStrategy(max_attempts=S3_TRIES)
    patience = {"retry_strategy": retry, "connect_timeout": 10, "request_timeout": S3_TIMEOUT_S}
    fs = pafs.S3FileSystem(allow_delayed_open=True, **patience, **options)  # so that a small file is one PUT
    return fs, f"{parts.netloc}{parts.path}"


@dataclass(frozen=True)
class Artifact:
    """A finished or unfinished folder ``name`` of ``store``. Picklable by (root, name)."""

    store: Store
    name: str

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_artifact, (self.store.root, self.name))

    @property
    def finished(self) -> bool:
        return self.store.exists(f"{self.name}/{MANIFEST}")

    @property
    def manifest(self) -> dict[str, Any]:
        try:
            return self.store.read_json(f"{self.name}/{MANIFEST}")
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise PladError(f"artifact {self.path}: {MANIFEST} is missing or unreadable ({error})") from error

    @property
    def path(self) -> str:
        return self.store.path(self.name)

    def file(self, name: str) -> str:
        """Name of a file of this artifact, relative to the store."""
        return f"{self.name}/{name}"

    def dataset(self, folder: str = "rows") -> pads.Dataset:
        """The Parquet files of ``folder``, read lazily. Temporary and hidden files are ignored."""
        return pads.dataset(f"{self.path}/{folder}", format="parquet", filesystem=self.store.fs)

    def table(self, columns: list[str] | None = None, folder: str = "rows") -> pa.Table:
        return self.dataset(folder).to_table(columns=columns)

    def batches(
        self, columns: list[str] | None = None, wanted: pads.Expression | None = None, folder: str = "rows"
    ) -> Iterator[pa.RecordBatch]:
        """The rows that ``wanted`` holds for, in order and a few thousand at a time. One row group after another: a scan of
        the whole dataset reads a GiB ahead of a slow reader, whatever read-ahead it is told."""
        dataset = self.dataset(folder)
        for fragment in dataset.get_fragments(wanted):
            for group in fragment.split_by_row_group(wanted, dataset.schema):
                yield from group.to_batches(dataset.schema, columns=columns, filter=wanted, batch_size=BATCH_ROWS)

    def rows(self, columns: list[str] | None = None, folder: str = "rows") -> Iterator[dict[str, Any]]:
        for batch in self.batches(columns, folder=folder):
            yield from batch.to_pylist()

    def write_rows(self, table: pa.Table, name: str = "part-00000", folder: str = "rows") -> None:
        self.store.write_table(self.file(f"{folder}/{name}.parquet"), table)

    def local_folder(self, folder: str = "files") -> Path:
        """A local path of a finished artifact's ``folder``: on a local store itself, else a copy on this machine, whose
        path is of the artifact's content, so it is the same on every machine."""
        if self.store.local:
            return Path(self.store.path(self.file(folder)))
        content = hashlib.sha256(self.store.read_bytes(self.file(MANIFEST))).hexdigest()[:16]
        return self.copy_to(Path(COPIES) / f"{self.name}-{content}" / folder)

    def copy_to(self, target: Path) -> Path:
        """Copy the folder that ``target`` is called after, unless it is there."""
        return copy_once(target, partial(self.store.download, self.file(target.name)))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Publish: record every file's size and hash, then write the manifest as the last act."""
        sizes = {n: s for n, s in self.store.files(self.name).items() if not _is_transient(n)}
        hashes = {n: self._sha256(n) for n in sizes}
        files = {n: {"bytes": sizes[n], "sha256": hashes[n]} for n in sorted(sizes)}
        self.store.write_json(self.file(MANIFEST), {**manifest, "files": files})

    def check(self, hashes: bool = False) -> None:
        """Raise PladError when a file differs from the manifest in size (or, if asked, in content)."""
        found = self.store.files(self.name)
        for name, recorded in self.manifest["files"].items():
            if found.get(name) != recorded["bytes"] or (hashes and self._sha256(name) != recorded["sha256"]):
                raise PladError(
                    f"artifact {self.path} is corrupted: {name} has {found.get(name, 'no')} bytes where the manifest "
                    f"records {recorded['bytes']} bytes, sha256 {recorded['sha256'][:12]}…; delete the folder and run "
                    "again to rebuild it"
                )

    def _sha256(self, name: str) -> str:
        def digest() -> str:
            found = hashlib.sha256()
            with self.store.fs.open_input_stream(self.store.path(self.file(name))) as stream:
                while block := stream.read(1 << 22):
                    found.update(block)
            return found.hexdigest()

        return again(digest)


def open_artifact(root: str, name: str) -> Artifact:
    return Artifact(Store(root), name)


def again(read: Callable[[], T]) -> T:
    """``read``, once more for each refusal that the SDK has no room for."""
    for tries in range(1, S3_TRIES):
        try:
            return read()
        except OSError as error:
            if NO_ROOM not in str(error):
                raise
        time.sleep(min(0.05 * 2**tries, 5.0))
    return read()


def copy_once(target: Path, write: Callable[[Path], object]) -> Path:
    """The folder ``target``, which ``write`` makes unless it is there: once a machine, whole or not at all."""
    if not target.is_dir():
        with locked(target.parent.with_name(f"{target.parent.name}.lock")):
            if not target.is_dir():
                temporary = target.with_name(f".copying-{target.name}")
                shutil.rmtree(temporary, ignore_errors=True)  # what a killed process has left
                write(temporary)
                temporary.rename(target)
    return target


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """One at a time, of processes and threads of this machine; the kernel releases it when the process dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _is_transient(name: str) -> bool:
    """Lease, work-in-progress and checkpoint files are no part of the published content."""
    return name in ("lease.json", MANIFEST) or name.startswith(("work/", ".")) or "/.writing-" in name


def hash_path(path: Path | RemoteFile) -> str:
    """Content hash of a file, or of a local folder's files with their names in it (hidden ones left out).

    Where the path lies and what it is called make no difference.
    """
    files: dict[str, Path | RemoteFile] = {".": path}
    if isinstance(path, Path) and path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        files = {p.relative_to(path).as_posix(): p for p in found}
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
