"""Tables cut to slices of the prompt table: everything once, in order, and no more memory for more rows."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest

from benchmarks import plumbing
from plad_ray import artifacts
from plad_ray import slices as module
from plad_ray.artifacts import Store
from plad_ray.config import Evaluate, Pairs, Pick, Rejection
from plad_ray.errors import PladError
from plad_ray.evaluate import run as evaluation
from plad_ray.generate import parts, requests
from plad_ray.pairs import build, lists, rejection
from plad_ray.reward import run as scoring
from plad_ray.slices import Places, slices
from tests.synthetic import job, prompt, prompts_artifact, response, responses_artifact, score, scores_artifact


def made(root: Path, count: int, lost: tuple[int, ...] = ()):
    """Prompts of two splits, and texts and scores of both roles in random order."""
    ids = [f"p{i}" for i in range(count)]
    rows = [response(w, p, f"{w} {p}") for i, p in enumerate(ids) for w in ("teacher", "student") if i not in lost]
    shuffled = random.Random(0).sample(rows, len(rows))
    prompts = [row for p in ids for row in (prompt(f"t{p}", "test"), prompt(p))]
    scores = [score(row, float(len(row["rid"]) % 3)) for row in rows[::-1]]
    return ids, {
        "prompts": prompts_artifact(root, prompts),
        "responses": responses_artifact(root, [*shuffled, response("teacher", "tp0", "x", split="test")]),
        "scores": scores_artifact(root, scores),
    }


def test_slices_hold_every_row_of_their_prompts_once_and_in_order(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "PROMPTS", 4)
    ids, inputs = made(tmp_path, 11, lost=(2,))
    cut = []
    for part in slices(inputs, "distill"):
        cut.append([r["prompt_id"] for r in part["prompts"].rows()])
        texts = list(part["responses"].rows())
        assert {r["prompt_id"] for r in texts} == set(cut[-1]) - {"p2"} and "token_ids" not in texts[0]
        assert len(texts) == 2 * len({r["prompt_id"] for r in texts}) == part["scores"].table().num_rows
    assert cut == [ids[:4], ids[4:8], ids[8:]]
    assert [[r["prompt_id"] for r in p["prompts"].rows()] for p in slices(inputs, "distill", limit=3)] == [ids[:3]]
    monkeypatch.setattr(module, "OPEN_FILES", 2)
    assert [p["prompts"].table().num_rows for p in slices(inputs, "distill")] == [6, 5]


def test_what_is_small_is_not_copied(tmp_path) -> None:
    _, inputs = made(tmp_path, 3)
    assert list(slices(inputs, "distill")) == [inputs]


def test_places_are_rows_of_the_split(tmp_path) -> None:
    ids, inputs = made(tmp_path, 50)
    table = inputs["responses"].table(["prompt_id"])["prompt_id"].combine_chunks()
    expected = [ids.index(p) if p in ids else -1 for p in table.to_pylist()]
    assert Places(inputs["prompts"], "distill").of(table).tolist() == expected
    assert set(Places(inputs["prompts"], "dev").of(table)) == {-1}
    with pytest.raises(PladError, match="prompt_id 'b' is there twice in split distill"):
        Places(prompts_artifact(tmp_path, [prompt(p) for p in "abcb"]), "distill")


@pytest.mark.parametrize("limit", [None, 7])
def test_pairs_of_slices_are_those_of_the_whole(tmp_path, monkeypatch, limit) -> None:
    _, inputs = made(tmp_path, 23, lost=(0, 5))
    pairs = Pairs(limit=limit, reward_share=0.5).model_dump(mode="json")
    config = {"pairs": pairs, "chat": False, "seed": 0}
    whole, cut = (job(tmp_path, name, config, inputs) for name in ("whole", "cut"))
    expected = build.run(whole)
    monkeypatch.setattr(module, "PROMPTS", 5)
    outcome = build.run(cut)
    assert outcome == expected and outcome.dropped["missing_chosen"] == 2
    assert cut.out.table().equals(whole.out.table()) and cut.out.table().num_rows == (limit or 21)


def drawn(root: Path, count: int):
    """Four texts and a reference a prompt of each of two splits, some cut off, some equal, and their scores."""
    dice, made = random.Random(1), {"responses": [], "eval_responses": []}
    prompts = [prompt(f"p{i}", split, f"w{i} w{i + 1}" if i % 5 else None) for i, split in enumerate(SPLITS * count)]
    for row in prompts:
        for policy, temperature, sample in TEXTS:
            if dice.random() < 0.1:
                continue
            text, reason = f"w{dice.randrange(9)} w{dice.randrange(3)}", dice.choice(["stop", "stop", "length"])
            made["eval_responses" if policy == "distilled" else "responses"].append(
                response(policy, row["prompt_id"], text, temperature, sample=sample, split=row["split"],
                         finish_reason=reason)
            )  # fmt: skip
    scores = [score(row, dice.randrange(9) / 7) for row in [*prompts, *made["responses"], *made["eval_responses"]]]
    return {
        "prompts": prompts_artifact(root, prompts),
        **{name: responses_artifact(root, dice.sample(rows, len(rows)), name) for name, rows in made.items()},
        "scores": scores_artifact(root, scores[::-1]),
    }


SPLITS = ("distill", "test")
TEXTS = [("teacher", 0.0, 0), *(("student", t, s) for t, s in ((0.7, 0), (0.7, 1), (0.7, 2), (0.0, 0)))]
TEXTS += [("distilled", 0.7, 0), ("distilled", 0.0, 0)]


def test_texts_to_be_scored_come_with_their_prompts(tmp_path, monkeypatch) -> None:
    inputs = {key: artifact for key, artifact in drawn(tmp_path, 11).items() if key != "scores"}
    monkeypatch.setattr(module, "PROMPTS", 4)
    made = job(tmp_path, "scores", {}, inputs)
    splits, rows, dialogue = scoring.write_texts(made, with_references=True)
    found = made.out.table(folder=scoring.FOLDER).to_pylist()
    assert (splits, rows, dialogue) == (["distill", "test"], len(found), False)
    prompts = {row["prompt_id"]: row for row in inputs["prompts"].rows()}
    answers = [row for key in ("eval_responses", "responses") for row in inputs[key].rows()]
    references = [p | score(p, 0.0) | {"text": p["reference"]} for p in prompts.values() if p["reference"]]
    for split in splits:
        expected = [row for row in [*references, *answers] if row["split"] == split]
        of = {row["rid"]: row for row in found if row["split"] == split}
        assert len(of) == len(expected)
        for row in expected:
            own = prompts[row["prompt_id"]]
            wanted = {name: row[name] for name in (*scoring.KEYS, "text")}
            assert of[row["rid"]] == wanted | {"prompt": own["prompt"], "reference": own["reference"]}
    texts = [row["rid"] for row in found if row["policy"] == "reference"]
    assert texts == [row["rid"] for split in splits for row in references if row["split"] == split]
    lost = responses_artifact(tmp_path, [response("student", "nobody", "w1")], "lost")
    with pytest.raises(PladError, match=r"1 responses are to no prompt of .*prompts-0"):
        scoring.write_texts(job(tmp_path, "scores", {}, {**inputs, "lost": lost}), with_references=False)


SECTION = {"chat": False, "seed": 0}
EVALUATION = {"arms": {"distilled": "distilled"}, "scorer": True, "seed": 0}
GREEDY, SAMPLED = Pick(policy="teacher", temperature=0.0), Pick(policy="student", temperature=0.7)
CONSISTENT = Pairs(chosen=SAMPLED, rejected=GREEDY, min_self_consistency=0.1, drop_truncated_chosen=False)
AGREEING = Pairs(chosen=GREEDY, rejected=SAMPLED, min_agreement=0.5, drop_truncated_chosen=False)
STAGES = {
    "pairs-consistent": (build.run, SECTION, CONSISTENT),
    "pairs-agreeing": (build.run, SECTION, AGREEING),
    "lists": (lists.run, SECTION, Pairs()),
    "lists-limit": (lists.run, SECTION, Pairs(limit=8)),
    "rejection": (rejection.run, SECTION, Pairs(rejection=Rejection(keep=2))),
    "rejection-limit": (rejection.run, SECTION, Pairs(rejection=Rejection(keep=2), limit=8)),
    "evaluate": (evaluation.run, EVALUATION, Evaluate(bootstrap=50)),
    "evaluate-limit": (evaluation.run, EVALUATION, Evaluate(bootstrap=50, limit=14)),
}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_make_of_slices_what_they_make_of_the_whole(tmp_path, monkeypatch, stage) -> None:
    run, config, section = STAGES[stage]
    inputs = drawn(tmp_path, 23)
    config = {**config, type(section).__name__.lower(): section.model_dump(mode="json")}
    whole, cut = (job(tmp_path, name, config, inputs) for name in ("whole", "cut"))
    expected = run(whole)
    monkeypatch.setattr(module, "PROMPTS", 5)
    assert run(cut) == expected and expected.rows_out >= 8
    assert cut.out.table().equals(whole.out.table())


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch) -> None:
    """Request table, fake engine, part files, rows and pairs in this process: what Python and Arrow hold at most."""
    monkeypatch.setattr(artifacts, "BATCH_ROWS", 50)
    monkeypatch.setattr(requests, "BATCH_ROWS", 50)
    monkeypatch.setattr(module, "PROMPTS", 100)
    monkeypatch.setattr(parts, "ROWS_PER_FILE", 100)
    monkeypatch.setattr(plumbing, "BLOCK", 50)
    peaks = {}
    for count in (500, 3_000):
        store = Store(str(tmp_path / str(count)))
        plumbing.write_prompts(store, count // 2)
        made = plumbing.generate_job(store, plumbing.write_model(tmp_path / f"model-{count}"))
        tracemalloc.start()
        assert plumbing.generate_here(made) == count
        outcome = build.run(plumbing.pairs_job(store))
        assert outcome.rows_in == count // 2
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # a byte for the number of each request, 16 for each prompt's place, 50 for what the summary reads of each pair
    assert peaks[3_000] - peaks[500] < 60 * 2_500
