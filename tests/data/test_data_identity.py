"""Identity is content: it survives moves and renames, and changes with a byte, an order, a split or a commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from plad_ray.config import Data
from plad_ray.data import hub
from plad_ray.data.identity import identity
from plad_ray.errors import PladError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def of(**values) -> dict:
    return identity(Data.model_validate({"source": "files", **values}))


def test_local_files_by_content(tmp_path: Path) -> None:
    for name, text in {"x/a.jsonl": "1", "x/b.jsonl": "2", "y/other.jsonl": "1", "y/z.jsonl": "2", "y/q": "3"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    x, y = tmp_path / "x", tmp_path / "y"
    assert of(path=str(x)) == of(path=str(y)) == of(path=[str(x / "a.jsonl"), str(y / "z.jsonl")])
    assert of(path=str(x)) != of(path=[str(x / "b.jsonl"), str(x / "a.jsonl")])
    assert of(path=str(x)) != of(path=str(x / "a.jsonl"))
    assert of(splits_paths={"train": str(x / "*")}) != of(splits_paths={"distill": str(x / "*")})
    before = of(path=str(x))
    (x / "a.jsonl").write_text("4")
    assert of(path=str(x)) != before


def test_missing_is_an_error_when_the_graph_is_built(tmp_path: Path) -> None:
    with pytest.raises(PladError, match=r"data.path: .* does not exist"):
        of(path=str(tmp_path / "nope.jsonl"))


def test_demo_has_none() -> None:
    sizes = dict.fromkeys(("train", "distill", "dev", "test"), 1)
    assert of(source="demo", sizes=sizes) == {}


def test_hub_offline_reads_the_cached_ref(tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    refs = tmp_path / "datasets--trl-lib--tldr" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    assert of(source="tldr") == {"hub": "trl-lib/tldr", "commit": COMMIT}
    assert of(hub="a/b", revision=COMMIT) == {"hub": "a/b", "commit": COMMIT}
    with pytest.raises(PladError, match=r"data.hub: a/b is not cached here and HF_HUB_OFFLINE is set"):
        of(hub="a/b")


def test_hub_that_cannot_be_reached(monkeypatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    class Down:
        def dataset_info(self, name: str, revision: str | None) -> None:
            raise hub._http_error()("no route")

    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Down)
    with pytest.raises(PladError, match=r"data.hub: a/b at its newest commit cannot be reached: HTTPError: no route"):
        of(hub="a/b")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"source": "tldr", "path": "x", "prompt_format": "{prompt}!"}, "prompt_format"),
        ({"source": "hh", "path": "x", "columns": {"prompt": "chosen"}}, "columns.prompt"),
        ({"path": "x", "hub_splits": {"train": "train"}}, "hub_splits"),
        ({"path": "x", "revision": "main"}, "revision"),
        (
            {
                "source": "demo",
                "sizes": dict.fromkeys(("train", "distill", "dev", "test"), 1),
                "columns": {"group": "g"},
            },
            "columns.group",
        ),
    ],
)
def test_keys_without_effect_are_refused(values: dict, key: str) -> None:
    with pytest.raises(PladError, match=rf"data\.{key} has no effect here"):
        of(**values)


def test_local_hub_folder_counts_names(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("1")
    before = of(hub=str(tmp_path))
    assert set(before["hub"]) == {"train.jsonl"}
    (tmp_path / "train.jsonl").rename(tmp_path / "test.jsonl")
    assert of(hub=str(tmp_path)) != before
