"""Data sets of the Hub, or local folders that ``datasets.load_dataset`` reads as one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plad_ray.config import SPLITS, Data, SplitName
from plad_ray.data.rows import Record
from plad_ray.errors import PladError

if TYPE_CHECKING:
    from datasets import Dataset

#: names that published data sets use for our splits.
NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "distill": ("distill",),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test",),
}

PARQUET_COPY = "refs/convert/parquet"


def resolve(name: str, revision: str | None) -> str:
    """The commit of data set ``name``. Offline (HF_HUB_OFFLINE=1): the one that this machine has cached."""
    from huggingface_hub import HfApi, constants

    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    if constants.is_offline_mode():
        ref = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / (revision or "main")
        if not ref.is_file():
            raise PladError(
                f"data.hub: {name} is not cached here and HF_HUB_OFFLINE is set; unset it, give the 40-digit commit as "
                "data.revision, or use data.path with local files"
            )
        return ref.read_text().strip()
    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
    except (OSError, ValueError, _http_error()) as error:
        raise PladError(
            f"data.hub: {name} at {revision or 'its newest commit'} cannot be reached: {_first_line(error)}; check the "
            "name and the network, or set HF_HUB_OFFLINE=1 to use what is cached, or data.path for local files"
        ) from error
    if commit is None:
        raise PladError(f"data.hub: {name} has no commit; give one as data.revision")
    return commit


def splits(name: str, data: Data, commit: str | None) -> dict[SplitName, Iterator[Record]]:
    """Our splits that the data set has: those of ``data.hub_splits``, else those with a usual name."""
    named = _named(name, data, commit) if data.hub_splits else _usual(name, data, commit)
    return {ours: _records(rows, f"{name} split {theirs}") for ours, (theirs, rows) in named.items()}


def _named(name: str, data: Data, commit: str | None) -> dict[SplitName, tuple[str, Dataset]]:
    theirs = list(data.hub_splits.values())
    twice = sorted({s for s in theirs if theirs.count(s) > 1})
    if twice:
        raise PladError(
            f"data.hub_splits uses {', '.join(twice)} twice; leave a split out and it is cut from the train split"
        )
    return {ours: (split, _load(name, data, commit, split)) for ours, split in data.hub_splits.items()}


def _usual(name: str, data: Data, commit: str | None) -> dict[SplitName, tuple[str, Dataset]]:
    every = _load(name, data, commit, None)
    found = {ours: next((n for n in NAMES[ours] if n in every), None) for ours in SPLITS}
    if found["train"] is None and found["distill"] is None:
        raise PladError(
            f"data.hub: {name} has no split called train (it has {', '.join(every)}); say which by data.hub_splits"
        )
    return {ours: (theirs, every[theirs]) for ours, theirs in found.items() if theirs is not None}


def _load(name: str, data: Data, commit: str | None, split: str | None) -> Any:
    """A Dataset, or a DatasetDict when ``split`` is None."""
    import datasets
    from datasets.exceptions import DatasetsError

    what = f"data.hub: {name}" + (f" split {split}" if split else "")
    try:
        return datasets.load_dataset(name, **_config(name, data), revision=commit, split=split)
    except (OSError, ValueError, DatasetsError, _http_error()) as error:
        raise PladError(
            f"{what} cannot be loaded: {_first_line(error)}; check data.hub, data.hub_config, data.hub_splits and the "
            "network, or use data.path with local files"
        ) from error


def _config(name: str, data: Data) -> dict[str, str | None]:
    """How ``datasets`` is told the configuration: by name, or as a folder where there are only files.

    The Hub's Parquet copy of a data set (branch refs/convert/parquet: the way to those that are scripts, which
    ``datasets`` no longer runs) has a folder a configuration; a local folder may have, or is one configuration itself.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return {"data_dir": data.hub_config if data.hub_config and (folder / data.hub_config).is_dir() else None}
    if data.revision == PARQUET_COPY:
        return {"data_dir": data.hub_config}
    return {"name": data.hub_config}


def _records(rows: Dataset, where: str) -> Iterator[Record]:
    if not len(rows):
        raise PladError(f"{where}: no rows; the data set is empty")
    number = 0
    for batch in rows.with_format("arrow").iter(1000):
        for values in batch.to_pylist():
            number += 1
            yield Record(values, f"{where} row {number}")


def _http_error() -> type[Exception]:
    """The base class of the errors of whichever HTTP client the hub library uses (httpx, requests)."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    assert issubclass(base, Exception)
    return base


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no detail').splitlines()[0]}"
