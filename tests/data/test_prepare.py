"""The prompts stage on small files, on a local data set folder, and on the shared real data."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plad_ray.data import prepare
from plad_ray.errors import PladError
from plad_ray.records import PROMPT

SCITLDR = {"source": "files", "columns": {"prompt": "source", "reference": "target", "prompt_id": "paper_id"}}


def table(n: int, start: int = 0) -> list[dict]:
    return [{"prompt": f"p{i}", "reference": f"r{i}"} for i in range(start, start + n)]


def by_split(artifact) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in artifact.rows():
        found.setdefault(row["split"], []).append(row["prompt"])
    return found


def rows_of(artifact) -> dict:
    return artifact.manifest["rows"]


def test_one_file_is_cut_into_all_splits(prepared, jsonl) -> None:
    done = prepared(source="files", path=jsonl(table(200)))
    assert done.dataset().schema.equals(PROMPT)
    assert {s: len(p) for s, p in by_split(done).items()} == {"train": 90, "distill": 90, "dev": 10, "test": 10}
    assert {row["prompt"]: row["reference"] for row in done.rows()} == {f"p{i}": f"r{i}" for i in range(200)}
    assert len({row["prompt_id"] for row in done.rows()}) == 200
    assert rows_of(done) == {"in": 200, "out": 200, "dropped": {}}
    assert done.manifest["metrics"]["splits"] == {"train": 90, "distill": 90, "dev": 10, "test": 10}


def test_row_order_of_the_source_does_not_matter(prepared, jsonl) -> None:
    one = prepared(source="files", path=jsonl(table(100), "a.jsonl")).table()
    other = prepared(source="files", path=jsonl(table(100)[::-1], "b.jsonl")).table()
    assert one.equals(other)


def test_seed_moves_rows(prepared, jsonl) -> None:
    path = jsonl(table(100))
    assert by_split(prepared(0, source="files", path=path)) != by_split(prepared(1, source="files", path=path))


def test_a_split_seed_holds_for_every_seed(prepared, jsonl) -> None:
    """The seed orders rows within splits and moves none of them; without it the experiment's seed is the one."""
    data = {"source": "files", "path": jsonl(table(100))}
    zero, one = (by_split(prepared(seed, **data, split_seed=5)) for seed in (0, 1))
    assert zero != one and {s: set(p) for s, p in zero.items()} == {s: set(p) for s, p in one.items()}
    assert by_split(prepared(1, **data, split_seed=1)) == by_split(prepared(1, **data))
    tuned, read = (by_split(prepared(seed, **data)) for seed in (100, 0))
    assert set(tuned["dev"] + tuned["train"]) & set(read["test"]), "what is refused without one"


def test_limit_and_sizes_are_nested_prefixes_and_counted(prepared, jsonl) -> None:
    path = jsonl(table(200))
    full = by_split(prepared(source="files", path=path))
    pilot = prepared(source="files", path=path, limit=7)
    assert by_split(pilot) == {split: prompts[:7] for split, prompts in full.items()}
    assert rows_of(pilot) == {"in": 200, "out": 28, "dropped": {"over_limit": 172}}
    capped = by_split(prepared(source="files", path=path, sizes={"distill": 20}))
    assert capped == {**full, "distill": full["distill"][:20]}


def test_many_parts_keep_the_order(prepared, jsonl, monkeypatch) -> None:
    path = jsonl(table(100))
    whole = prepared(source="files", path=path).table()
    monkeypatch.setattr(prepare, "PART", 8)
    monkeypatch.setattr(prepare, "BATCH", 3)
    assert prepared(source="files", path=path).table().equals(whole)


def test_exact_duplicates_are_dropped_and_other_references_kept_together(prepared, jsonl) -> None:
    rows = [*table(40), {"prompt": "p0", "reference": "r0"}, {"prompt": "p0", "reference": "another"}]
    done = prepared(source="files", path=jsonl(rows))
    assert rows_of(done)["dropped"] == {"duplicate": 1}
    twins = [row for row in done.rows() if row["prompt"] == "p0"]
    assert len(twins) == 2 and len({row["split"] for row in twins}) == 1 and len({r["prompt_id"] for r in twins}) == 2


def test_group_column_and_its_opt_out(prepared, jsonl) -> None:
    rows = [{**row, "who": f"w{i // 10}"} for i, row in enumerate(table(200))]
    path = jsonl(rows)
    done = prepared(source="files", path=path, columns={"group": "who"})
    assert Counter(len({r["split"] for r in done.rows() if r["group"] == f"w{i}"}) for i in range(20)) == {1: 20}
    torn = list(prepared(source="files", path=path, columns={"group": "who"}, group_split=False).rows())
    assert max(len({r["split"] for r in torn if r["group"] == f"w{i}"}) for i in range(20)) > 1


def test_given_splits_halve_train_and_keep_the_published_test(prepared, jsonl) -> None:
    paths = {"train": jsonl(table(100), "train.jsonl"), "test": jsonl(table(30, 95), "test.jsonl.gz")}
    done = prepared(source="files", splits_paths=paths, fractions={"train": 0.5, "distill": 0.5})
    found = by_split(done)
    assert sorted(found["test"]) == sorted(f"p{i}" for i in range(95, 125))
    assert (len(found["train"]), len(found["distill"])) in {(47, 48), (48, 47)}
    assert rows_of(done)["dropped"] == {"duplicate": 5}  # the five that test has too


def test_a_prompt_of_the_published_test_leaves_train(prepared, jsonl) -> None:
    leak = [{"prompt": "p100", "reference": "other words"}]
    paths = {"train": jsonl(table(100) + leak, "train.jsonl"), "test": jsonl(table(10, 100), "test.jsonl")}
    done = prepared(source="files", splits_paths=paths)
    assert rows_of(done)["dropped"] == {"group_in_other_split": 1}
    kept = prepared(source="files", splits_paths=paths, group_split=False)
    assert rows_of(kept)["dropped"] == {}


def test_max_prompt_chars_drops_and_counts(prepared, jsonl) -> None:
    done = prepared(
        source="files", path=jsonl([*table(50), {"prompt": "long " * 10, "reference": "x"}]), max_prompt_chars=20
    )
    assert rows_of(done) == {"in": 51, "out": 50, "dropped": {"prompt_too_long": 1}}


def test_parquet_folder_glob_and_list(prepared, jsonl, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "deep"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(table(20)), folder / "a.parquet")
    extra = jsonl(table(20, 20), "b.jsonl")
    (folder / "notes.txt").write_text("no data")
    expected = {f"p{i}" for i in range(40)}
    for path in ([str(tmp_path / "data"), extra], [str(folder / "*.parquet"), str(tmp_path / "b.json*")]):
        done = prepared(source="files", path=path)
        assert {row["prompt"] for row in done.rows()} == expected


def test_chat_messages_reach_the_table(prepared, jsonl) -> None:
    chats = [{"prompt": [{"role": "user", "content": f"hi {i}"}], "reference": "yo"} for i in range(10)]
    rows = list(prepared(source="files", path=jsonl(chats)).rows())
    assert {row["messages"][0]["content"] for row in rows} == {f"hi {i}" for i in range(10)}
    assert all(row["prompt"] == f"user: {row['messages'][0]['content']}" for row in rows)


def test_demo(prepared) -> None:
    sizes = {"train": 20, "distill": 15, "dev": 5, "test": 10}
    found = by_split(prepared(source="demo", sizes=sizes))
    assert {split: len(prompts) for split, prompts in found.items()} == sizes
    assert len({p for prompts in found.values() for p in prompts}) == 50


def test_duplicate_ids_name_both_places(prepared, jsonl) -> None:
    rows = [{**row, "id": i % 9} for i, row in enumerate(table(10))]
    with pytest.raises(PladError, match=r"rows.jsonl line 10: id '0' was seen before at .*rows.jsonl line 1;"):
        prepared(source="files", path=jsonl(rows), columns={"prompt_id": "id"})


def test_train_that_is_all_in_test_is_an_error(prepared, jsonl) -> None:
    paths = {"train": jsonl(table(5), "train.jsonl"), "test": jsonl(table(5), "test.jsonl")}
    with pytest.raises(PladError, match=r"no row of train is left.*duplicate"):
        prepared(source="files", splits_paths=paths)


# a local folder that `datasets` reads like a Hub data set


def hub_folder(tmp_path: Path, **names: int) -> str:
    folder = tmp_path / "hub"
    folder.mkdir()
    start = 0
    for name, n in names.items():
        lines = (json.dumps(row) for row in table(n, start))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        start += n
    return str(folder)


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("datasets_cache")
def test_hub_splits_by_usual_and_by_given_names(prepared, tmp_path) -> None:
    name = hub_folder(tmp_path, train=40, validation=6, test=8)
    usual = by_split(prepared(source="files", hub=name))
    assert {split: len(prompts) for split, prompts in usual.items()} == {
        "train": 20,
        "distill": 20,
        "dev": 6,
        "test": 8,
    }
    given = by_split(prepared(source="files", hub=name, hub_splits={"train": "test", "test": "train[:10]"}))
    assert len(given["test"]) == 10 and sum(map(len, given.values())) == 18
    with pytest.raises(PladError, match=r"data.hub_splits uses train twice; leave a split out"):
        prepared(source="files", hub=name, hub_splits={"train": "train", "distill": "train"})
    with pytest.raises(PladError, match=r"split nope cannot be loaded.*data.hub_splits"):
        prepared(source="files", hub=name, hub_splits={"train": "nope"})
    with pytest.raises(PladError, match=r"hub split test row 1: no column 'text'.*are: prompt, reference"):
        prepared(source="files", hub=name, columns={"prompt": "text"})


@pytest.mark.usefixtures("datasets_cache")
def test_real_scitldr_as_a_hub_folder(prepared, shared) -> None:
    done = prepared(**SCITLDR, hub=str(shared / "data" / "scitldr"))
    assert rows_of(done) == {"in": 3229, "out": 3225, "dropped": {"group_in_other_split": 4}}


# formats with their own rules


def dialogue(i: int, turn: int) -> dict:
    shared = f"\n\nHuman: topic {i}\n\nAssistant: yes" * 1 + "\n\nHuman: more\n\nAssistant: ok" * turn
    shared += "\n\nHuman: and?\n\nAssistant:"
    return {"chosen": f"{shared} good {i} {turn}", "rejected": f"{shared} bad"}


def test_hh_resplits_dialogues_but_keeps_published_sizes(prepared, jsonl) -> None:
    rows = [dialogue(i, turn) for i in range(60) for turn in range(2)]
    paths = {"train": jsonl(rows[::2] + rows[1:80:2], "train.jsonl.gz"), "test": jsonl(rows[81::2], "test.jsonl")}
    done = prepared(source="hh", splits_paths=paths, sizes={"dev": 6})
    splits_of: dict[str, set] = {}
    for row in done.rows():
        splits_of.setdefault(row["group"], set()).add(row["split"])
    assert len(splits_of) == 60 and all(len(found) == 1 for found in splits_of.values())
    sizes = done.manifest["metrics"]["splits"]
    assert sizes["dev"] == 6 and sizes["test"] == 14 and abs(sizes["train"] - sizes["distill"]) <= 2
    torn = prepared(source="hh", splits_paths=paths, sizes={"dev": 6}, group_split=False)
    assert torn.manifest["metrics"]["splits"] == {"train": 50, "distill": 50, "dev": 6, "test": 14}


def test_tldr_from_local_files(prepared, jsonl) -> None:
    rows = [{"subreddit": "a", "title": "t", "post": f"post {i}\n" + "x" * 40, "summary": "s"} for i in range(40)]
    rows.append({"subreddit": "a", "title": "t", "post": "p", "summary": ""})
    done = prepared(source="tldr", path=jsonl(rows), max_prompt_chars=70)
    assert rows_of(done) == {"in": 41, "out": 40, "dropped": {"empty_response": 1}}
    assert all(row["prompt"].endswith("\n\nTL;DR:") and "xxx" not in row["prompt"] for row in done.rows())
    assert {row["reference"] for row in done.rows()} == {" s"}


# the shared real data


def test_real_scitldr(prepared, shared) -> None:
    paths = {split: str(shared / "data" / "scitldr" / f"{split}.jsonl") for split in ("train", "dev", "test")}
    done = prepared(
        **SCITLDR, splits_paths=paths, prompt_format="{title}\n\n{prompt}\n\nTL;DR:", reference_format=" {reference}"
    )
    sizes = done.manifest["metrics"]["splits"]
    assert sizes["test"] == 618 and sizes["dev"] == 618  # the published dev set shares a paper with test
    assert abs(sizes["train"] - sizes["distill"]) <= 1
    assert rows_of(done)["in"] == 1992 + 619 + 618
    rows = {row["prompt_id"]: row for row in done.rows()}
    assert rows["SysEexbRb"]["reference"].startswith(" We provide necessary and sufficient analytical")
    assert rows["SysEexbRb"]["prompt"].endswith("does have local minimum that is not global minimum.\n\nTL;DR:")


def test_real_hh(prepared, shared) -> None:
    path = shared / "data" / "hh_rlhf" / "harmless-base_test.jsonl.gz"
    done = prepared(source="hh", path=str(path), max_prompt_chars=1000)
    assert rows_of(done)["in"] == 2312
    assert rows_of(done)["dropped"] == {"empty_response": 4}
    with gzip.open(path) as lines:
        chosen = {json.loads(line)["chosen"] for line in lines}
    rows = list(done.rows())
    whole = sum(row["prompt"] + row["reference"] in chosen for row in rows)
    assert whole > 1800  # the others were cut on the left, or had trailing space
    assert all(row["prompt"].startswith("\n\nHuman:") and row["prompt"].endswith("\n\nAssistant:") for row in rows)
    assert all(len(row["prompt"]) <= 1000 and "\n\nHuman:" not in row["reference"] for row in rows)
    torn = Counter(group for group, _ in {(row["group"], row["split"]) for row in rows})
    assert set(torn.values()) == {1}
