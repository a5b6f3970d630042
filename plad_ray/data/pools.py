"""The given splits of an experiment's data as streams of rows, whatever the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from plad_ray.config import SPLITS, Data, SplitName
from plad_ray.data import hub, reading
from plad_ray.data.rows import Record, Row
from plad_ray.data.sources import demo, files, hh, tldr
from plad_ray.errors import PladError

#: sources that turn records into rows: ``convert(record, data) -> Row`` or the reason why there is none.
CONVERTERS: dict[str, ModuleType] = {"files": files, "tldr": tldr, "hh": hh}
Rows = Iterator[tuple[Row | str, str]]


def location(data: Data) -> Literal["path", "splits_paths", "hub"]:
    """Where the data lies; tldr and hh come from the Hub unless told otherwise."""
    given: list[Any] = [name for name in ("path", "splits_paths", "hub") if getattr(data, name)]
    if len(given) > 1:
        raise PladError(f"data: give one of path, splits_paths and hub; given: {', '.join(given)}")
    return given[0] if given else "hub"


def check(data: Data) -> None:
    """Raise PladError for keys that this source would ignore."""
    place = None if data.source == "demo" else location(data)
    unused: list[str] = []
    if data.source != "files":
        unused += ["prompt_format", "reference_format", "columns.prompt", "columns.reference", "columns.join"]
    if data.source == "demo":
        unused += ["columns.prompt_id", "columns.group"]
    if place != "hub":
        unused += ["hub_config", "hub_splits", "revision"]
    given, default = data.model_dump(), Data.model_construct(source=data.source).model_dump()
    for key in unused:
        outer, _, inner = key.partition(".")
        values = [section[outer][inner] if inner else section[outer] for section in (given, default)]
        if values[0] != values[1]:
            why = "reads no hub data set" if key in ("hub_config", "hub_splits", "revision") else "has its own format"
            raise PladError(f"data.{key} has no effect here: source {data.source} {why}; leave it out")


def hub_name(data: Data) -> str:
    return data.hub or CONVERTERS[data.source].HUB


def given_files(data: Data) -> dict[SplitName, list[reading.File]]:
    """Files of each given split (``path`` alone is a ``train`` of which everything is cut). Missing -> PladError."""
    if location(data) == "path":
        assert data.path is not None
        return {"train": reading.expand(data.path, "data.path")}
    found = {
        s: reading.expand(data.splits_paths[s], f"data.splits_paths.{s}") for s in SPLITS if s in data.splits_paths
    }
    if "train" not in found and "distill" not in found:
        raise PladError("data.splits_paths needs train or distill; the splits that are missing are cut from it")
    owner: dict[reading.File, str] = {}
    for split, paths in found.items():
        for path in paths:
            if (other := owner.setdefault(path.resolve() if isinstance(path, Path) else path, split)) != split:
                raise PladError(
                    f"data.splits_paths: {path} is both {other} and {split}; leave one out and it is cut from train"
                )
    return found


def pools(data: Data, seed: int, source: dict[str, Any]) -> dict[SplitName, Rows]:
    """Rows of each given split, or the reason for dropping one, with the place each came from.

    ``source`` is what ``identity`` found: its commit is the one that is read.
    """
    if data.source == "demo":
        return {s: ((r, f"demo {s}") for r in rows) for s, rows in demo.splits(data, seed).items()}
    if location(data) == "hub":
        records = hub.splits(hub_name(data), data, source.get("commit"))
    else:
        records = {split: reading.records(paths) for split, paths in given_files(data).items()}
    return {split: _convert(found, data) for split, found in records.items()}


def _convert(records: Iterator[Record], data: Data) -> Rows:
    convert = CONVERTERS[data.source].convert
    for record in records:
        yield convert(record, data), record.where
