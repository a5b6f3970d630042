"""The graph of distillation: rounds, the frozen models that an objective asks for, what cannot be iterated."""

from __future__ import annotations

from typing import Any

import pytest
from test_config import EXPERIMENT

from plad_ray.config import parse
from plad_ray.errors import PladError
from plad_ray.pipeline import plan
from plad_ray.stages import Stage

PULL = "tests.train.external_objective:Pull"


def stages(**sections: Any) -> dict[str, Stage]:
    return plan(parse({**EXPERIMENT, "scorer": {"name": "demo"}, **sections})).stages


def inputs(stage: Stage) -> dict[str, str]:
    return {key: parent.name for key, parent in stage.inputs.items()}


def test_each_round_reads_the_newest_adapter():
    found = stages(distill={"rounds": 3})
    assert inputs(found["distill-round1"]) == {"pairs": "pairs", "base/0": "sft-student"}
    before = {"prompts": "prompts", "responses": "responses", "scores": "scores"}
    assert inputs(found["pairs"]) == before
    for now, newest in ((2, "distill-round1"), (3, "distill-round2")):
        texts, scores = f"responses-student-round{now}", f"scores-student-round{now}"
        assert inputs(found[texts]) == {"prompts": "prompts", "student/0": "sft-student", "student/1": newest}
        assert list(found[texts].config["policies"]) == ["student"]
        assert inputs(found[scores]) == {"prompts": "prompts", "responses": texts}
        newer = {"responses/student": texts, "scores/student": scores}
        assert inputs(found[f"pairs-round{now}"]) == before | newer, "the teacher's text stays what it was"
        start = {"base/0": "sft-student", "base/1": newest}
        assert inputs(found[f"distill-round{now}"]) == {"pairs": f"pairs-round{now}"} | start
    assert inputs(found["eval-responses"])["distilled/1"] == "distill-round3"
    assert inputs(found["report"])["train/distilled"] == "distill-round3" and "distill" not in found


def test_another_number_of_rounds_shares_the_earlier_ones():
    three, two, one = (stages(distill={"rounds": rounds}) for rounds in (3, 2, 1))
    assert three["distill-round2"].artifact_name == two["distill-round2"].artifact_name
    assert three["distill-round1"].identity == one["distill"].identity
    assert inputs(one["report"])["train/distilled"] == "distill"


def test_rounds_of_a_further_arm_have_its_name():
    found = stages(compare={"twice": {"distill": {"rounds": 2}}})
    assert inputs(found["distill-twice-round2"]) == {
        "pairs": "pairs-twice-round2",
        "base/0": "sft-student",
        "base/1": "distill-twice-round1",
    }
    assert inputs(found["distill-twice-round1"])["pairs"] == "pairs", "the first round's pairs are those of every arm"
    assert inputs(found["pairs-twice-round2"])["responses/student"] == "responses-twice-round2"
    assert inputs(found["eval-responses"])["twice/1"] == "distill-twice-round2"
    assert "distill" in found


def test_a_reference_is_the_student_as_the_round_found_it():
    found = stages(distill={"rounds": 2, "objective": {"name": PULL}})
    first, second = found["distill-round1"], found["distill-round2"]
    assert inputs(first)["frozen/reference/0"] == "sft-student" and "frozen/reference/1" not in first.inputs
    assert inputs(second)["frozen/reference/1"] == "distill-round1"
    ahead = second.inputs["frozen/ahead/2"]
    assert inputs(ahead) == {"pairs": "pairs-round2", "base/0": "sft-student", "base/1": "distill-round1"}


def test_frozen_models_are_trained_first():
    """By the partial section that the objective gives, over the arm's own settings."""
    found = stages(distill={"objective": {"name": PULL, "strength": 0.5}, "batch_size": 16, "epochs": 2})
    distill = found["distill"]
    name = inputs(distill)["frozen/ahead/1"]
    assert inputs(distill) == {
        "pairs": "pairs",
        "base/0": "sft-student",
        "frozen/ahead/0": "sft-student",
        "frozen/ahead/1": name,
        "frozen/reference/0": "sft-student",
    }
    upstream = found[name]
    assert inputs(upstream) == {"pairs": "pairs", "base/0": "sft-student"}
    training = upstream.config["training"]
    assert (training["epochs"], training["batch_size"]) == (4, 16)
    assert (training["objective"]["name"], training["objective"]["margin"]) == ("plad_rank", 3.0)
    assert "frozen" not in upstream.config and set(distill.config["frozen"]) == {"ahead", "reference"}
    assert distill.config["training"]["objective"] == {"name": PULL, "strength": 0.5}


def test_aligndistil_has_a_dpo_and_a_reverse_dpo_stage_first():
    """Both from the student's start and on the arm's pairs; they differ in the order alone."""
    section = {"name": "aligndistil", "dpo_beta": 0.2, "on_policy": True}
    found = stages(compare={"tokens": {"distill": {"objective": section}}})
    last = found["distill-tokens"]
    assert last.config["max_new_tokens"] == 64 and set(last.config["frozen"]) == {"dpo", "reverse_dpo"}
    ends = {}
    for name in ("dpo", "reverse_dpo"):
        stage = last.inputs[f"frozen/{name}/1"]
        assert inputs(last)[f"frozen/{name}/0"] == "sft-student"
        frozen = {"pairs": "pairs", "base/0": "sft-student", "frozen/reference/0": "sft-student"}
        assert inputs(stage) == frozen
        ends[name] = stage.config["training"]["objective"]
    assert ends["dpo"]["name"] == "dpo" and ends["dpo"]["beta"] == 0.2
    assert ends["reverse_dpo"] == ends["dpo"] | {"reverse": True} and not ends["dpo"]["reverse"]


def test_the_source_of_an_objective_is_its_identity(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    text = "from tests.train.external_objective import Pull as Base\n\nclass Mine(Base):\n    pass\n"
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for comment in ("", "# changed\n"):
        file.write_text(text + comment)
        digests.append(stages(distill={"objective": {"name": "mine:Mine"}})["distill"].digest)
    assert digests[0] != digests[1]


SAME_TEXT = "trains on no text here that this experiment's student writes"
REFUSED = [
    ({"distill": {"rounds": 2, "objective": {"name": "sft"}}}, f"sft {SAME_TEXT}"),
    ({"distill": {"rounds": 2, "objective": {"name": "seqkd"}}}, rf"distill\.rounds 2: seqkd {SAME_TEXT}"),
    (
        {"compare": {"kd": {"distill": {"rounds": 3, "objective": {"name": "seqkd"}}}}},
        rf"compare\.kd\.distill\.rounds 3: seqkd {SAME_TEXT}",
    ),
    ({"distill": {"rounds": 2, "select_on_dev": {"a": {"epochs": 2}}}}, "exclude each other"),
    ({"distill": {"select_on_dev": {"a": {"rounds": 2}}}}, "exclude each other"),
    ({"distill": {"rounds": 2}, "data": {**EXPERIMENT["data"], "pairs": "pairs.jsonl"}}, "the same rows"),
]


@pytest.mark.parametrize(("sections", "message"), REFUSED)
def test_rounds_that_would_see_the_same_rows_are_refused(sections, message):
    with pytest.raises(PladError, match=message):
        stages(**sections)
