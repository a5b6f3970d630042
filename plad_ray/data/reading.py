"""Files, here or in an object store, row by row, with the line of every problem."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from plad_ray import remote
from plad_ray.data.rows import Record
from plad_ray.errors import PladError

JSON_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
ENDINGS = (*JSON_LINES, ".parquet")
BATCH = 2048
File = Path | remote.RemoteFile


def expand(paths: str | list[str], option: str) -> list[File]:
    """Files of a path or URI, folder (all data files below it), glob, or list of these, in reading order.

    Reading order is the list's order, and by name within a folder or glob. ``option`` is the key of the experiment
    file, for messages. Raises PladError for what is not there, cannot be read or is of no kind that is known.
    """
    found: list[File] = []
    for path in [paths] if isinstance(paths, str) else paths:
        for file in _files(path, option):
            if file in found:
                raise PladError(f"{option}: {file} is named twice; name each file once")
            found.append(file)
    return found


def _files(path: str, option: str) -> list[File]:
    is_folder, found = remote.find(path, option) if remote.is_uri(path) else _local(Path(path).expanduser())
    files: list[File] = [*found]
    if is_folder:
        files = [f for f in files if f.name.endswith(ENDINGS) and not PurePosixPath(f.name).name.startswith(".")]
        if not files:
            raise PladError(f"{option}: folder {path} holds no data file; expected {', '.join(ENDINGS)}")
    if not files:
        raise PladError(f"{option}: {path} does not exist; expected a file, a folder or a glob that matches files")
    for file in files:
        if not file.name.endswith(ENDINGS):
            raise PladError(f"{option}: {file} is of no kind that can be read; expected {', '.join(ENDINGS)}")
    return files


def _local(place: Path) -> tuple[bool, list[Path]]:
    """Whether it is a folder, and the files that it stands for."""
    if place.is_dir():
        return True, sorted(place.rglob("*"))
    if place.is_file():
        return False, [place]
    return False, sorted(Path(p) for p in glob.glob(str(place), recursive=True) if Path(p).is_file())  # noqa: PTH207 (absolute)


def records(files: list[File]) -> Iterator[Record]:
    """All rows of ``files``. Raises PladError naming file and line for what cannot be read, or when there is no row."""
    empty = True
    for file in files:
        for record in _parquet(file) if file.name.endswith(".parquet") else _json_lines(file):
            empty = False
            yield record
    if empty:
        raise PladError(f"{', '.join(map(str, files))}: no rows; the data set is empty")


def _json_lines(file: File) -> Iterator[Record]:
    for number, line in enumerate(_lines(file), 1):
        where = f"{file} line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise PladError(
                f"{where}: not UTF-8 text (byte {error.start} of the line); save the file as UTF-8"
            ) from None
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise PladError(f"{where}: broken JSON at column {error.colno}: {error.msg}; one object a line") from None
        if not isinstance(value, dict):
            raise PladError(f"{where}: expected one JSON object a line, found {type(value).__name__}")
        yield Record(value, where)


def _lines(file: File) -> Iterator[bytes]:
    if not file.name.endswith(".gz"):
        with file.open("rb") as stream:
            yield from stream
        return
    try:
        with file.open("rb") as raw, gzip.open(raw) as stream:
            yield from stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PladError(f"{file}: not a complete gzip file ({error}); copy it again") from None


def _parquet(file: File) -> Iterator[Record]:
    number = 0
    try:
        source = file if isinstance(file, Path) else file.open_anywhere()
        for batch in pq.ParquetFile(source).iter_batches(BATCH):
            for values in batch.to_pylist():
                number += 1
                yield Record(values, f"{file} row {number}")
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise PladError(f"{file}: not readable as Parquet after row {number} ({error}); copy it again") from None
