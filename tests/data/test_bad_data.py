"""Every way a file can be bad gives one message that names the place and what would be right."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from plad_ray.config import Data
from plad_ray.data import pools
from plad_ray.errors import PladError

GOOD = b'{"prompt": "a", "reference": "b"}\n'


def read(**values) -> list:
    data = Data.model_validate({"source": "files", **values})
    return [row for rows in pools.pools(data, 0, {}).values() for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: no rows; the data set is empty"),
        ("a.jsonl", b"\n\n", "a.jsonl: no rows"),
        ("a.jsonl", GOOD + b'{"prompt": "a"', r"a.jsonl line 2: broken JSON at column \d+: .*; one object a line"),
        ("a.jsonl", GOOD + b'["a"]\n', "a.jsonl line 2: expected one JSON object a line, found list"),
        ("a.json", b"[\n" + GOOD + b"]\n", "a.json line 1: broken JSON"),
        (
            "a.jsonl",
            GOOD + '{"prompt": "ä"}'.encode("latin-1"),
            r"a.jsonl line 2: not UTF-8 text \(byte 12 of the line\)",
        ),
        ("a.jsonl.gz", GOOD, "a.jsonl.gz: not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(GOOD * 1000)[:40], "a.jsonl.gz: not a complete gzip file"),
        ("a.parquet", GOOD, "a.parquet: not readable as Parquet"),
        ("a.csv", GOOD, r"data.path: .*a.csv is of no kind that can be read; expected .jsonl, "),
    ],
)
def test_bad_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PladError, match=message):
        read(path=str(tmp_path / name))


def test_byte_order_mark_and_blank_lines_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD)
    assert [row.prompt for row, _ in read(path=str(tmp_path / "a.jsonl"))] == ["a", "a"]
    assert [where.rpartition(" ")[2] for _, where in read(path=str(tmp_path / "a.jsonl"))] == ["1", "3"]


@pytest.mark.parametrize("path", ["nope.jsonl", "*.nope", "sub/**/*.jsonl"])
def test_missing(tmp_path: Path, path: str) -> None:
    with pytest.raises(PladError, match=r"data.path: .* does not exist; expected a file, a folder or a glob"):
        read(path=str(tmp_path / path))


def test_folder_without_data_and_file_named_twice(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(PladError, match=r"holds no data file; expected .jsonl"):
        read(path=str(tmp_path))
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    with pytest.raises(PladError, match=r"a.jsonl is named twice"):
        read(path=[str(tmp_path), str(tmp_path / "a.jsonl")])


def test_split_files(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(GOOD)
    with pytest.raises(PladError, match=r"a.jsonl is both train and distill; leave one out"):
        read(splits_paths={"train": str(file), "distill": str(file)})
    with pytest.raises(PladError, match=r"data.splits_paths needs train or distill"):
        read(splits_paths={"test": str(file)})
    with pytest.raises(PladError, match=r"data.splits_paths.dev: .*nope.jsonl does not exist"):
        read(splits_paths={"train": str(file), "dev": str(tmp_path / "nope.jsonl")})


def test_two_places(tmp_path: Path) -> None:
    with pytest.raises(PladError, match=r"give one of path, splits_paths and hub; given: path, hub"):
        read(source="hh", path="x", hub="y")
