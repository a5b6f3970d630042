"""Exported pairs as the other trainers read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import load_dataset
from typer.testing import CliRunner

from plad_ray.cli import app
from plad_ray.export.formats import FORMATS
from tests.export.finished import TEXTS, finished


@pytest.fixture(scope="module", params=["text", "chat"])
def experiment(request, tmp_path_factory) -> tuple[Path, bool]:
    folder = tmp_path_factory.mktemp(request.param)
    finished(folder, request.param == "chat")
    return folder / "exp.yaml", request.param == "chat"


def exported(file: Path, to: str, out: Path):
    result = CliRunner().invoke(app, ["export", "pairs", str(file), "--to", to, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert str(out) in result.output.split()
    return load_dataset("json", data_files=str(out), split="train", cache_dir=str(out.parent / "cache"))


def messages(i: int, *sides: int) -> list[dict[str, str]]:
    """The chat of pair ``i``: its prompt, and the answers in ``sides`` (1 chosen, 2 rejected)."""
    answers = [{"role": "assistant", "content": TEXTS[i][side]} for side in sides]
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXTS[i][0]}, *answers]


def user(i: int) -> dict[str, str]:
    return {"role": "user", "content": TEXTS[i][0]}


def assistant(i: int, side: int) -> dict[str, str]:
    return {"role": "assistant", "content": TEXTS[i][side]}


def test_trl_knows_the_type_and_reads_the_text(experiment, tmp_path) -> None:
    from trl.data_utils import is_conversational, maybe_extract_prompt

    file, chat = experiment
    table = exported(file, "trl", tmp_path / "out.jsonl")
    for i, row in enumerate(table):
        assert is_conversational(row) == chat
        row = maybe_extract_prompt(row)
        assert row["prompt"] == (messages(i) if chat else TEXTS[i][0])
        assert row["chosen"] == ([assistant(i, 1)] if chat else TEXTS[i][1])
    assert {"chosen_score", "score_gap", "order", "prompt_id"} <= set(table.column_names)
    assert not {"margin", "model"} & set(table.column_names)


def test_ms_swift(experiment, tmp_path) -> None:
    file, chat = experiment
    table = exported(file, "ms-swift", tmp_path / "out.jsonl")
    assert set(table.column_names) == {"messages", "rejected_response"}
    for i, row in enumerate(table):
        assert row["messages"] == (messages(i, 1) if chat else [user(i), assistant(i, 1)])
        assert row["rejected_response"] == TEXTS[i][2]


def test_llama_factory_with_its_dataset_info(experiment, tmp_path) -> None:
    file, chat = experiment
    table = exported(file, "llama-factory", tmp_path / "out.jsonl")
    [(name, info)] = json.loads((tmp_path / "dataset_info.json").read_text()).items()
    assert name == "mine" and info["file_name"] == "out.jsonl" and info["ranking"] is True
    assert set(info["columns"].values()) == set(table.column_names), "every column is named, none is made up"
    for i, row in enumerate(table):
        if chat:
            assert info["formatting"] == "sharegpt" and row[info["columns"]["messages"]] == messages(i)
            assert (row["chosen"], row["rejected"]) == (assistant(i, 1), assistant(i, 2))
            assert row["chosen"][info["tags"]["role_tag"]] == info["tags"]["assistant_tag"]
        else:
            assert (row["instruction"], row["input"], row["chosen"], row["rejected"]) == (
                TEXTS[i][0], "", TEXTS[i][1], TEXTS[i][2],
            )  # fmt: skip


def test_nemo_rl(experiment, tmp_path) -> None:
    file, chat = experiment
    table = exported(file, "nemo-rl", tmp_path / "out.jsonl")
    for i, row in enumerate(table):
        assert row["context"] == (messages(i) if chat else [user(i)])
        assert row["completions"] == [{"rank": side - 1, "completion": [assistant(i, side)]} for side in (1, 2)]


def test_openrlhf(experiment, tmp_path) -> None:
    file, chat = experiment
    table = exported(file, "openrlhf", tmp_path / "out.jsonl")
    assert set(table.column_names) == {"prompt", "chosen", "rejected"}
    for i, row in enumerate(table):
        if chat:  # with apply_chat_template it joins prompt and answer as lists
            assert row["prompt"] + row["rejected"] == messages(i, 2)
        else:
            assert (row["prompt"], row["chosen"], row["rejected"]) == TEXTS[i]


def test_every_format_is_tested() -> None:
    assert set(FORMATS) == {"trl", "ms-swift", "llama-factory", "nemo-rl", "openrlhf"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "axolotl"], "formats: trl, ms-swift"),
        (["--arm", "other"], "this experiment has distilled, plain"),
        (["--arm", "plain"], "trains on the references"),
        (["seed=7"], "not made yet"),
        (["--out", "{there}"], "is there already"),
    ],
)
def test_what_cannot_be_exported_is_one_message(experiment, tmp_path, arguments, message) -> None:
    file, _ = experiment
    (tmp_path / "there.jsonl").write_text("mine")
    arguments = [a.format(there=tmp_path / "there.jsonl") for a in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, ["export", "pairs", str(file), *arguments])
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "out.jsonl").exists() and (tmp_path / "there.jsonl").read_text() == "mine"
