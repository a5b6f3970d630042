"""The experiment file: what it refuses and how it says so, overrides, combinations, what is identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from plad_ray.config import load, parse
from plad_ray.errors import PladError
from plad_ray.pipeline import plan

SCRATCH = {"tokenizer": "words", "config": {"hidden_size": 64, "num_attention_heads": 2}}
ROLE: dict[str, Any] = {"model": {"scratch": SCRATCH}, "sft": {"method": "full"}}
EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "demo", "sizes": {"train": 8, "distill": 8, "dev": 4, "test": 4}},
    "teacher": ROLE,
    "student": {
        "model": {"scratch": {**SCRATCH, "config": {"hidden_size": 32, "num_attention_heads": 1}}},
        "sft": {"method": "full"},
    },
}


PICK = ["scorer.name=demo", "pairs.lists=[{policy: student, temperature: 0.2}, {policy: teacher, temperature: 0.7}]"]
GREEDY = "pairs.chosen={policy: teacher, temperature: 0.0}"
SAME_DRAW = "pairs.chosen={policy: student, temperature: 0.7, sample: 1}"
PLAIN_STUDENT = ["student.model.scratch=null", "student.model.path=some/model"]
CANDIDATE = ["distill.select_on_dev.whole.method=full", "scorer.name=demo"]
HOT = ["pairs.rejection.temperatures=[2.0]", "scorer.name=demo"]


def write(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    file = folder / "exp.yaml"
    file.write_text(yaml.safe_dump({**EXPERIMENT, **(changes or {})}))
    return file


def refused(folder: Path, *overrides: str) -> str:
    with pytest.raises(PladError) as error:
        load(write(folder), overrides)
    return str(error.value)


def test_defaults_are_the_papers(tmp_path):
    exp = load(write(tmp_path))
    lora = exp.distill.lora
    assert (lora.r, lora.alpha, lora.dropout) == (8, 32, 0.1)
    assert exp.distill.schedule == "linear" and exp.distill.epochs == 1
    assert exp.pairs.chosen.policy == "teacher" and exp.pairs.rejected.policy == "student"


def test_overrides_are_dotted_yaml(tmp_path):
    exp = load(
        write(tmp_path), ["distill.objective.margin=0.5", "evaluate.temperatures=[0.0]", "scorer.name=demo", "seed=3"]
    )
    assert exp.distill.objective.params == {"margin": 0.5}
    assert exp.evaluate.temperatures == (0.0,)
    assert exp.scorer is not None and exp.scorer.name == "demo"
    assert exp.seed == 3


def test_an_override_in_scientific_notation_is_a_number(tmp_path):
    """YAML 1.1 reads 1e-3 as text; every numeric field, an objective's too, must take it as 0.001."""
    exp = load(write(tmp_path), ["distill.learning_rate=1e-3", "distill.objective.margin=1e-1"])
    assert exp.distill.learning_rate == 0.001
    margin = plan(exp).stages["distill"].config["training"]["objective"]["margin"]
    assert margin == 0.1 and isinstance(margin, float)


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=1", ".a=1", "data.source.x=1", "seed=[1"])
def test_malformed_overrides_name_themselves(tmp_path, override):
    assert repr(override) in refused(tmp_path, override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("distil.epochs=2", ["distil", "did you mean distill?"]),
        ("distill.epoch=2", ["distill.epoch", "did you mean epochs?"]),
        ("teacher.model.scratch.vocabsize=9", ["teacher.model.scratch.vocabsize", "vocab_size"]),
        ("runtime.train.workrs=2", ["runtime.train.workrs", "did you mean workers?"]),
        ("distill.objective.margn=1", ["margn", "margin"]),
        ("distill.objective.name=dpo2", ["dpo2", "plad_rank"]),
        ("distill.objective.margin=wide", ["plad_rank", "margin", "wide"]),
        ("distill.epochs=-1", ["distill.epochs", "-1"]),
        ("distill.batch_size=many", ["distill.batch_size", "many"]),
        ("data.sizes.train=0", ["data.sizes.train", "0"]),
        ("generate.top_p=1.5", ["generate.top_p", "1.5"]),
        ("name=a b", ["name", "a b"]),
        ("evaluate.temperatures=[-1]", ["evaluate.temperatures", "-1"]),
    ],
)
def test_unknown_keys_and_wrong_values_are_named(tmp_path, override, expected):
    message = refused(tmp_path, override)
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["teacher=null"], ["teacher is missing", "data.responses"]),
        (
            ["student.model.scratch.config={hidden_size: 64, num_attention_heads: 2}"],
            ["teacher and student are the same"],
        ),
        (["student.sft.method=lora"], ["model.scratch needs sft.method full"]),
        (["student.model.path=x"], ["exactly one of path"]),
        (
            [*PLAIN_STUDENT, "student.sft.method=lora", "compare.whole.distill.method=full"],
            ["compare.whole.distill.method full", "set student.sft.method to full"],
        ),
        (
            [*PLAIN_STUDENT, "student.sft=null", "student.model.adapter=a", "distill.method=full"],
            ["distill.method full", "student.model.adapter", "merge it"],
        ),
        (
            [*PLAIN_STUDENT, "student.sft=null", "student.model.load_in_4bit=true", *CANDIDATE],
            ["load_in_4bit", "distill.select_on_dev.whole.method full", "lora"],
        ),
        (["distill.method=full", "merge.base_weight=0.5"], ["merge averages adapters", "distill.method full"]),
        (["pairs.chosen={policy: teacher, temperature: 0.3}"], ["pairs.chosen", "0.3", "teacher.draw.temperatures"]),
        (["pairs.chosen={policy: student, temperature: 0.7}"], ["the same text"]),
        (["distill.objective.name=plad_margin"], ["scorer.name"]),
        (["pairs.reward_share=0.5"], ["pairs.reward_share of arm distilled", "scorer.name"]),
        (
            ["pairs.min_self_consistency=0.8"],
            ["pairs.min_self_consistency of arm", "one is drawn", "teacher.draw.samples"],
        ),
        (
            ["pairs.min_self_consistency=0.8", "teacher.draw={temperatures: [0.0], samples: 4}", GREEDY],
            ["pairs.min_self_consistency of arm distilled", "greedy samples are all the same"],
        ),
        (["pairs.min_agreement=0.8"], ["pairs.min_agreement of arm", "teacher.draw.samples or student.draw.samples"]),
        (
            ["pairs.min_agreement=0.8", "student.draw.samples=2"],
            ["pairs.min_agreement of arm distilled", "scorer.name"],
        ),
        (
            ["pairs.min_agreement=0.8", "student.draw.samples=2", "pairs.reward_share=0.5", "scorer.name=demo"],
            ["pairs.min_agreement of arm distilled", "pairs.reward_share 0.5", "one of the two"],
        ),
        (
            ["pairs.min_agreement=0.8", "student.draw.samples=2", "scorer.name=demo", SAME_DRAW],
            ["pairs.min_agreement of arm distilled", "samples of one draw"],
        ),
        (
            ["compare.x.pairs.min_agreement=0.8", "scorer.name=demo", "data.pairs=x.jsonl"],
            ["pairs.min_agreement of arm x", "data.pairs brings finished pairs"],
        ),
        (["data.split_seed=3"], ["data.split_seed", "new posts for every seed"]),
        (["pairs.reward_share=1.5"], ["pairs.reward_share", "1.5"]),
        (["distill.objective.name=lipo"], ["scorer.name"]),
        (["distill.objective.name=lipo", *PICK], ["pairs.lists of arm distilled", "0.2", "student.draw.temperatures"]),
        (["distill.objective.name=lipo", *PICK[:1], "pairs.lists=[]"], ["pairs.lists", "at least two different texts"]),
        (["distill.objective.name=rso"], ["pairs.rejection", "1 is drawn", "student.draw.samples"]),
        (
            ["compare.x.distill.objective.name=rso", "student.draw={samples: 8, temperatures: [0, 0.7]}", *HOT],
            ["pairs.rejection.temperatures of arm x", "temperature 2", "student.draw.temperatures"],
        ),
        (
            ["distill.objective.name=rso", "scorer.name=demo", "data.pairs=x.jsonl"],
            ["rejection", "data.pairs", "data.responses"],
        ),
        (["pairs.reward_share=0.5", "scorer.name=demo", "data.pairs=x.jsonl"], ["reward_share", "data.pairs"]),
        (
            ["distill.select_on_dev.a.objective.name=lipo", "scorer.name=demo", "student.draw.samples=4"],
            ["select_on_dev.a", "lists", "pairs", "compare"],
        ),
        (["distill.select_on_dev.a.learning_rate=1.0e-3"], ["select_on_dev", "scorer.name"]),
        (["data.fractions.train=0.9"], ["add up to"]),
        (["data.path=x.jsonl"], ["demo takes data.sizes"]),
        (["compare.teacher.distill.epochs=2"], ["compare.teacher", "taken"]),
        (["compare={lr-0.1: {}}"], ["compare.lr-0.1: a name is made of letters, digits, - and _"]),
        (["distill.select_on_dev={lr-0.1: {}}", "scorer.name=demo"], ["select_on_dev.lr-0.1: a name is made of"]),
        (["compare.more.distill.epoch=2"], ["compare.more.distill.epoch", "epochs"]),
        (["compare.more.pairs.chosen.temprature=2"], ["compare.more.pairs.chosen.temprature", "temperature"]),
        (["distill.select_on_dev.a.epoch=2", "scorer.name=demo"], ["distill.select_on_dev.a.epoch", "epochs"]),
    ],
)
def test_impossible_combinations_say_what_would_be_right(tmp_path, overrides, expected):
    message = refused(tmp_path, *overrides)
    assert all(part in message for part in expected), message
    assert "errors.pydantic.dev" not in message


def test_every_problem_is_listed_at_once(tmp_path):
    message = refused(tmp_path, "distill.epochs=-1", "generate.max_tokens=0")
    assert "distill.epochs" in message and "generate.max_tokens" in message


def test_a_changed_objective_drops_the_fields_of_the_old_one(tmp_path):
    exp = load(write(tmp_path), ["distill.objective.margin=2.0", "compare.kd.distill.objective.name=seqkd"])
    assert exp.arms()["kd"][1].objective.params == {}
    assert exp.arms()["distilled"][1].objective.params == {"margin": 2.0}


def test_arms_of_each_kind_of_table_share_what_they_can(tmp_path):
    """Lists need no picked sides, references no texts; what a table does not read does not change its name."""
    overrides = [
        "scorer.name=demo",
        "student.draw={samples: 4, temperatures: [1.0]}",
        "pairs.rejected={policy: student, temperature: 1.0}",
        "distill.objective.name=plad_rank",
        *(f"compare.{name}.distill.objective.name={name}" for name in ("dpo", "rso", "lipo", "rrhf", "sft")),
    ]
    whole = plan(load(write(tmp_path), overrides))
    tables = {name: stage for name, stage in whole.stages.items() if "pairs" in stage.config}
    assert set(tables) == {"pairs", "rejection-rso", "lists-lipo"}
    assert whole.stages["distill-rrhf"].inputs["pairs"] is tables["lists-lipo"]
    assert "pairs" not in whole.stages["distill-sft"].inputs
    assert whole.stages["distill-dpo"].config["frozen"].keys() == {"reference"}
    assert whole.stages["distill-dpo"].inputs["frozen/reference/0"] is whole.stages["sft-student"]
    other = plan(load(write(tmp_path), [*overrides, "pairs.rejection.beta=2.0", "pairs.reward_share=0.5"])).stages
    changed = {name for name in tables if other[name].digest != tables[name].digest}
    assert changed == {"pairs", "rejection-rso"}


def test_a_filter_is_part_of_the_name_of_pairs_alone_and_where_it_is_on(tmp_path):
    overrides = ["scorer.name=demo", "student.draw.samples=4", "teacher.draw.samples=4"]
    overrides += [f"compare.{name}.distill.objective.name={name}" for name in ("rso", "lipo")]
    base = plan(load(write(tmp_path), overrides)).stages
    assert base["pairs"].config["pairs"].keys() == {
        "chosen", "rejected", "reward_share", "drop_truncated_chosen", "limit"
    }  # fmt: skip
    for key in ("pairs.min_agreement", "pairs.min_self_consistency"):
        other = plan(load(write(tmp_path), [*overrides, f"{key}=0.5"])).stages
        tables = {name for name, stage in other.items() if "pairs" in stage.config}
        assert {n for n in tables if other[n].digest != base[n].digest} == {"pairs"}
        off = plan(load(write(tmp_path), [*overrides, f"{key}=null"])).stages
        assert {n: s.digest for n, s in off.items()} == {n: s.digest for n, s in base.items()}


def test_imported_teacher_text_is_scored_too(tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"prompt": "x", "response": "y"}\n')
    stages = plan(load(write(tmp_path), [f"data.responses={texts}", "scorer.name=demo"])).stages
    assert stages["scores"].inputs.keys() == {"prompts", "responses", "imported"}


def test_runtime_is_never_identity(tmp_path):
    base = plan(load(write(tmp_path)))
    changed = [
        "runtime.train.workers=4",
        "runtime.train.micro_batch=2",
        "runtime.train.zero_stage=3",
        "runtime.train.gpus_per_worker=1",
        "runtime.teacher.replicas=3",
        "runtime.student.engine_kwargs.max_num_seqs=4",
        "runtime.store=elsewhere",
        "runtime.parallel_stages=5",
    ]
    other = plan(load(write(tmp_path), changed))
    assert {n: s.digest for n, s in base.stages.items()} == {n: s.digest for n, s in other.stages.items()}


def test_only_what_depends_on_the_margin_gets_a_new_name(tmp_path):
    base = plan(load(write(tmp_path)))
    other = plan(load(write(tmp_path), ["distill.objective.margin=0.25"]))
    changed = {name for name, stage in base.stages.items() if other.stages[name].digest != stage.digest}
    assert changed == {"distill", "eval-responses", "evaluate", "report"}


def test_writing_a_default_out_changes_no_name(tmp_path):
    base = plan(load(write(tmp_path)))
    other = plan(load(write(tmp_path), ["distill.objective.margin=1.0", "distill.method=lora", "generate.top_p=1.0"]))
    assert [n for n, s in base.stages.items() if n != "report" and other.stages[n].digest != s.digest] == []


def test_what_of_an_api_is_identity(tmp_path):
    """The endpoint and its model are; key, limits and prices are not."""
    api = {"base_url": "https://api.example.com/v1", "name": "m"}
    base = {"teacher": {"engine": "openai", "model": {"api": api}}}

    def digest(*overrides: str) -> str:
        return plan(load(write(tmp_path, base), overrides)).stages["responses"].digest

    same = ["api_key_env=MY_KEY", "concurrency=3", "requests_per_minute=9", "retries=0", "timeout=5"]
    prices = ["runtime.teacher.api.input_price=1", "runtime.teacher.api.output_price=2"]
    assert {digest(f"runtime.teacher.api.{s}") for s in same} | {digest(*prices)} == {digest()}
    other = ["name=n", "endpoint=completions", "base_url=https://x.org/v1", "extra_body={a: 1}", "send_seed=false"]
    assert len({digest(f"teacher.model.api.{o}") for o in other} | {digest()}) == 6


def test_files_that_are_no_experiment(tmp_path):
    for content, expected in [(b"\xff\xfe", "UTF-8"), (b"a: [", "not valid YAML"), (b"- 1", "mapping of sections")]:
        file = tmp_path / "broken.yaml"
        file.write_bytes(content)
        with pytest.raises(PladError, match=expected):
            load(file)
    with pytest.raises(PladError, match="no such experiment file"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(PladError, match="student: Field required"):
        parse({k: v for k, v in EXPERIMENT.items() if k != "student"})


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[1].glob("jobs/*.yaml")), ids=lambda f: f.name)
def test_every_checked_in_experiment_loads(file):
    if file.name == "runtime_env.yaml":
        environment = yaml.safe_load(file.read_text())
        assert ".git/" in environment["excludes"] and environment["working_dir"] == "."
        return
    exp = load(file)
    assert exp.arms()
