"""Bad input: one clear message and exit code 2, before any compute (or, for rows, at the row in the prompts stage)."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_config import EXPERIMENT
from typer.testing import CliRunner

from plad_ray import preflight
from plad_ray.artifacts import Store
from plad_ray.cli import app
from plad_ray.config import load
from plad_ray.errors import PladError
from plad_ray.objectives.plad import PladRank
from plad_ray.pipeline import plan
from plad_ray.placement import Node
from plad_ray.stages import execute
from plad_ray.train import kernels
from tests.conftest import save_tiny_model

ROWS = [{"question": f"w{i} w{i + 1}", "answer": f" w{i}"} for i in range(30)]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Whatever is checked here must be refused before Ray starts."""

    def started(*_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("plad_ray.cluster.connect", started)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    small = save_tiny_model(folder / "small", seed=1)
    return {
        "large": save_tiny_model(folder / "large"),
        "small": small,
        "copy": Path(shutil.copytree(small, folder / "copy")),
        "padded": save_tiny_model(folder / "padded", vocab_size=64),
        "short": save_tiny_model(folder / "short", max_position_embeddings=48),
        "foreign": save_tiny_model(folder / "foreign", words=[f"v{i}" for i in range(40)]),
        "narrow": save_tiny_model(folder / "narrow", hidden_size=32, num_attention_heads=2, num_key_value_heads=2),
        "gpt2": save_tiny_model(folder / "gpt2", "gpt2"),
        "t5": save_tiny_model(folder / "t5", "t5"),
        "neo": save_tiny_model(folder / "neo", "gpt_neo", num_layers=2, attention_types=[[["global"], 2]]),
    }


@pytest.fixture
def files(tmp_path, models):
    """Write an experiment on local files and pretrained models; ``plad(overrides)`` runs it."""

    def write(rows: list[Any] | bytes = ROWS, **changes: Any) -> Path:
        content = rows if isinstance(rows, bytes) else "".join(json.dumps(r) + "\n" for r in rows).encode()
        (tmp_path / "data.jsonl").write_bytes(content)
        experiment: dict[str, Any] = {
            "name": "bad",
            "data": {
                "source": "files",
                "path": str(tmp_path / "data.jsonl"),
                "columns": {"prompt": "question", "reference": "answer"},
            },
            "teacher": {"model": {"path": str(models["large"]), "max_length": 64}},
            "student": {"model": {"path": str(models["small"]), "max_length": 64}},
            "generate": {"max_tokens": 8},
            "runtime": {"store": str(tmp_path / "runs")},
        }
        file = tmp_path / "exp.yaml"
        file.write_text(yaml.safe_dump(experiment | changes))
        return file

    return write


def refused(file: Path, *overrides: str) -> str:
    """The message of `plad run`, which must be the only thing it says."""
    result = CliRunner().invoke(app, ["run", str(file), *overrides], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and "Traceback" not in result.output
    return result.stderr


def refused_row(file: Path, *overrides: str) -> str:
    """The message of the prompts stage, which reads every row before any model is touched."""
    exp = load(file, overrides)
    with pytest.raises(PladError) as error:
        execute([plan(exp).stages["prompts"]], Store(exp.runtime.store), exp.runtime, say=lambda _: None)
    return str(error.value)


def test_the_experiment_itself_is_fine(files):
    exp = load(files())
    preflight.check(exp, list(plan(exp).stages.values()))
    store = Store(exp.runtime.store)
    execute([plan(exp).stages["prompts"]], store, exp.runtime, say=lambda _: None)
    assert plan(exp).stages["prompts"].artifact(store).manifest["rows"]["out"] == len(ROWS)


BEFORE = [
    ("missing data file", ["data.path=absent.jsonl"], ["data.path", "absent.jsonl", "does not exist"]),
    ("wrong type", ["distill.batch_size=many"], ["distill.batch_size", "many"]),
    ("unknown objective", ["distill.objective.name=ppo"], ["unknown objective", "ppo", "plad_rank"]),
    ("unknown key", ["studnt.model.path=x"], ["studnt", "did you mean student?"]),
    ("missing model folder", ["teacher.model.path=/no/such/model"], ["/no/such/model", "no such folder"]),
    ("LoRA rank", ["distill.lora.r=1024"], ["rank 1024", "512"]),
    ("response longer than the context", ["generate.max_tokens=64"], ["max_tokens 64", "max_length 64"]),
    ("context longer than the model's", ["student.model.max_length=4096"], ["student", "4096", "256"]),
    ("end token", ["student.model.eos_token=<stop>"], ["student", "<stop>", "vocabulary"]),
    ("stop token", ["student.model.stop_token_ids=[999]"], ["student", "999"]),
    ("chat template", ["teacher.model.template=chat"], ["teacher", "chat template", "plain"]),
    ("4-bit without GPU", ["student.model.load_in_4bit=true"], ["student", "load_in_4bit", "bitsandbytes"]),
    ("fused kernels without GPU", ["runtime.train.fused_kernels=true"], ["fused_kernels", "gpus_per_worker"]),
    ("unknown scorer", ["scorer.name=bleu"], ["unknown scorer", "bleu", "rouge"]),
    ("scorer's module", ["scorer.name=no_such:f"], ["no_such"]),
    ("classifier without a model", ["scorer.name=classifier"], ["scorer.model"]),
    ("adapter", ["student.model.adapter=/no/adapter"], ["/no/adapter", "adapter_config.json"]),
    ("temperature 0 on both sides of one model", ["pairs.chosen={policy: student, temperature: 0.7}"], ["same text"]),
    (
        "temperature that nobody generates",
        ["pairs.chosen={policy: teacher, temperature: 0.1}"],
        ["0.1", "temperatures"],
    ),
    ("engine argument that is identity", ["runtime.student.engine_kwargs.seed=1"], ["engine_kwargs.seed"]),
    ("unknown store", ["runtime.store=ftp://x/y"], ["runtime.store", "s3://"]),
    ("no experiment", ["data=null"], ["data"]),
    ("imported responses", ["data.responses=absent.jsonl"], ["data.responses", "absent.jsonl", "does not exist"]),
]


@pytest.mark.parametrize(("overrides", "expected"), [b[1:] for b in BEFORE], ids=[b[0] for b in BEFORE])
def test_refused_before_anything_runs(files, overrides, expected):
    message = refused(files(), *overrides)
    assert all(part in message for part in expected), message


def test_fused_kernels_that_are_not_installed(files, monkeypatch):
    monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: False)
    message = refused(files(), "runtime.train={fused_kernels: true, gpus_per_worker: 1}")
    assert "liger-kernel" in message and "the extra gpu" in message


API = "{engine: openai, model: {api: {base_url: 'https://api.example.com/v1', name: m}}}"
SECRET = "sk-canary-77"
AN_API = [
    ("key", ["runtime.teacher.api.api_key_env=PLAD_NO_SUCH_KEY"], ["teacher", "PLAD_NO_SUCH_KEY", "not set"]),
    ("key in the file", [f"runtime.teacher.api.api_key={SECRET}"], ["runtime.teacher.api.api_key", "api_key_env"]),
    (
        "key for its variable",
        [f"runtime.teacher.api.api_key_env={SECRET}"],
        ["runtime.teacher.api", "never in this file"],
    ),
    (
        "key in the address",
        [f"teacher.model.api.base_url=https://me:{SECRET}@x.org/v1"],
        ["base_url", "no user, password"],
    ),
    ("key in the query", [f"teacher.model.api.base_url=https://x.org/v1?key={SECRET}"], ["base_url", "query"]),
    ("address", ["teacher.model.api.base_url=api.example.com"], ["base_url", "http(s)"]),
    ("engine of an API", ["teacher.engine=vllm"], ["engine vllm", "model.api"]),
    ("two sources", ["teacher.model.path=x"], ["exactly one of path", "api"]),
    ("adapter", ["teacher.model.adapter=x"], ["model.adapter", "weights"]),
    ("context", ["teacher.model.max_length=64"], ["model.max_length", "data.max_prompt_chars"]),
    ("SFT", ["teacher.sft={}"], ["sft needs weights"]),
    ("top_k", ["generate.top_k=5"], ["generate.top_k", "extra_body"]),
    (
        "field of its own",
        ["teacher.model.api.extra_body={temperature: 1}"],
        ["extra_body.temperature", "draw.temperatures"],
    ),
    ("logits", ["distill.objective.name=test_bad_input:ReadsLogits"], ["ReadsLogits", "logits", "plad_rank"]),
    ("replicas", ["runtime.teacher.replicas=2"], ["runtime.teacher.replicas", "concurrency"]),
    ("engine arguments", ["runtime.teacher.engine_kwargs.seed=1"], ["runtime.teacher.engine_kwargs", "openai"]),
    ("GPU", ["runtime.teacher.gpus=1"], ["runtime.teacher.gpus"]),
    ("one price", ["runtime.teacher.api.input_price=1"], ["input_price", "output_price"]),
    ("limits of a local model", ["runtime.student.api={}"], ["runtime.student.api", "not behind an API"]),
    ("student", [f"student={API}"], ["student", "no weights to train"]),
]


@dataclass(frozen=True)
class ReadsLogits(PladRank):
    @property
    def logits_of(self) -> tuple[str, ...]:
        return ("teacher",)


@pytest.mark.parametrize(("overrides", "expected"), [b[1:] for b in AN_API], ids=[b[0] for b in AN_API])
def test_a_teacher_behind_an_api(files, overrides, expected):
    message = refused(files(), f"teacher={API}", *overrides)
    assert all(part in message for part in expected), message
    assert SECRET not in message


def test_engine_openai_without_an_api(files):
    assert "engine openai serves model.api" in refused(files(), "teacher.engine=openai")


ROW = [
    ("missing column", [{"q": "a"}], ["line 1", "question", "columns there are: q"]),
    ("prompt of a wrong type", [*ROWS, {"question": 3, "answer": "x"}], ["line 31", "question", "int 3"]),
    ("empty prompt", [*ROWS, {"question": " ", "answer": "x"}], ["line 31", "empty"]),
    ("missing reference", [*ROWS, {"question": "a", "answer": None}], ["line 31", "reference is missing"]),
    ("empty dataset", b"", ["no rows"]),
    ("not UTF-8", b'{"question": "a", "answer": "b"}\n{"question": "\xff"}\n', ["line 2", "UTF-8"]),
    ("broken JSON", b'{"question": "a", "answer": "b"}\n{"question"\n', ["line 2", "broken JSON"]),
    ("no object", b"[1, 2]\n", ["line 1", "object"]),
    ("too few rows", ROWS[:2], ["cannot fill the splits"]),
]


@pytest.mark.parametrize(("rows", "expected"), [b[1:] for b in ROW], ids=[b[0] for b in ROW])
def test_refused_at_the_row(files, rows, expected):
    message = refused_row(files(rows))
    assert all(part in message for part in expected), message


def test_duplicate_ids(files):
    rows = [{**row, "id": i % 29} for i, row in enumerate(ROWS)]
    message = refused_row(files(rows), "data.columns.prompt_id=id")
    assert "line 30" in message and "seen before at" in message and "line 1" in message


def test_head_size_that_vllms_cpu_attention_lacks(files, models):
    message = refused(files(), f"student.model.path={models['narrow']}")
    assert "student" in message and "head size 16" in message and "engine: transformers" in message
    exp = load(files(), [f"student.model.path={models['narrow']}", "student.engine=transformers"])
    preflight.check(exp, list(plan(exp).stages.values()))


def test_head_size_of_a_model_from_scratch(tmp_path):
    file = tmp_path / "exp.yaml"
    file.write_text(yaml.safe_dump({**EXPERIMENT, "runtime": {"store": str(tmp_path / "runs")}}))
    assert "head size 24" in refused(file, "teacher.model.scratch.config.hidden_size=48")
    assert "no 'hiden'" in refused(file, "teacher.model.scratch.config.hiden=48")
    assert "model_type 'lama'" in refused(file, "teacher.model.scratch.model_type=lama")


def test_architecture_that_vllm_does_not_serve(files, models):
    message = refused(files(), f"teacher.model.path={models['neo']}")
    assert "gpt_neo" in message and "engine: transformers" in message


def test_a_student_whose_adapters_vllm_does_not_serve(files, models):
    message = refused(files(), f"student.model.path={models['gpt2']}")
    assert "student: vLLM serves gpt2 models without LoRA adapters" in message and "engine: transformers" in message
    exp = load(files(), [f"teacher.model.path={models['gpt2']}"])
    preflight.check(exp, list(plan(exp).stages.values()))


def test_an_encoder_decoder_has_max_length_on_either_side(files, models):
    t5 = [f"student.model.path={models['t5']}", "student.engine=transformers", "student.model.max_length=8"]
    exp = load(files(), [*t5, "student.model.max_prompt_tokens=8"])
    preflight.check(exp, list(plan(exp).stages.values()))
    assert "t5 models; set engine: transformers" in refused(files(), *t5[:1])
    assert "generate.max_tokens 9 exceeds model.max_length 8" in refused(files(), *t5, "generate.max_tokens=9")
    assert "model.max_prompt_tokens 9 exceeds" in refused(files(), *t5, "student.model.max_prompt_tokens=9")


def test_teacher_equals_student_under_another_name(files, models):
    message = refused(files(), f"teacher.model.path={models['copy']}")
    assert "teacher and student are the same model" in message


@pytest.mark.parametrize(
    ("removed", "added", "expected"),
    [
        ("config.json", None, "config.json"),
        ("tokenizer.json", None, "tokenizer"),
        ("model.safetensors", None, "no weights"),
        ("model.safetensors", "pytorch_model.bin", "pickled"),
    ],
)
def test_incomplete_model_folders(files, models, tmp_path, removed, added, expected):
    folder = Path(shutil.copytree(models["small"], tmp_path / "incomplete"))
    (folder / removed).unlink()
    if added:
        (folder / added).write_bytes(b"")
    message = refused(files(), f"student.model.path={folder}")
    assert str(folder) in message and expected in message


WHITE_BOX = ["kd", "fdistill", "minillm", "gkd"]


@pytest.mark.parametrize("name", WHITE_BOX)
def test_logit_methods_need_one_tokenizer(files, models, name):
    objective = f"distill.objective={{name: {name}}}"
    message = refused(files(), objective, f"teacher.model.path={models['foreign']}")
    assert "teacher's tokenizer differs" in message and "'w0'" in message
    text_only = set(message.strip().rpartition("alone work: ")[2].split(", "))
    assert {"plad_rank", "seqkd"} <= text_only and not text_only & set(WHITE_BOX)


def test_logit_methods_take_a_padded_vocabulary(files, models):
    exp = load(files(), ["distill.objective.name=kd", f"teacher.model.path={models['padded']}"])
    preflight.check(exp, list(plan(exp).stages.values()))


def test_text_methods_take_any_tokenizer(files, models):
    exp = load(files(), [f"teacher.model.path={models['foreign']}"])
    preflight.check(exp, list(plan(exp).stages.values()))


def test_logit_methods_need_a_teacher_with_weights(files, tmp_path):
    (tmp_path / "responses.jsonl").write_text("{}")
    given = ["teacher=null", f"data.responses={tmp_path / 'responses.jsonl'}"]
    message = refused(files(), *given, "compare.soft.distill.objective.name=gkd")
    assert "objective gkd (distill-soft) reads the teacher's logits" in message and "plad_rank" in message


def test_logit_methods_need_a_teacher_that_reads_as_far(files, models):
    given = ["distill.objective.name=kd", f"teacher.model.path={models['short']}", "teacher.model.max_length=48"]
    message = refused(files(), *given)
    assert "the teacher reads what the student trains on" in message and "64" in message and "48" in message


def test_logit_methods_need_two_models_that_read_alike(files, models):
    given = ["distill.objective.name=kd", f"teacher.model.path={models['t5']}", "teacher.engine=transformers"]
    message = refused(files(), *given)
    assert "only one is an encoder-decoder" in message and "plad_rank" in message


def test_logit_methods_of_models_from_scratch(tmp_path):
    file = tmp_path / "exp.yaml"
    file.write_text(yaml.safe_dump({**EXPERIMENT, "runtime": {"store": str(tmp_path / "runs")}}))
    exp = load(file, ["distill.objective.name=fdistill"])
    preflight.check(exp, list(plan(exp).stages.values()))
    message = refused(file, "distill.objective.name=fdistill", "student.model.scratch.vocab_size=300")
    assert "different tokenizers" in message and "scratch.vocab_size" in message and "plad_rank" in message


def test_references_that_are_not_there(files):
    none = "data.columns={prompt: question, reference: null}"
    message = refused(files(), none, "distill.objective={name: minillm, lm_weight: 1.0}")
    assert "distill trains on the references" in message and "data.columns.reference" in message
    assert "sft-student" in refused(files(), none, "student.sft={}")
    exp = load(files(), [none, "distill.objective.name=minillm"])  # samples alone: the prompts suffice
    preflight.check(exp, list(plan(exp).stages.values()))


def test_adapter_for_another_base(files, models, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    note = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": str(models["large"]), "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(note))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    message = refused(files(), f"student.model.adapter={adapter}")
    assert "adapter for another base" in message and str(models["small"]) in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_store_without_permission(files, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "not writable" in refused(files(), f"runtime.store={tmp_path / 'closed' / 'runs'}")


def test_store_below_a_file(files, tmp_path):
    (tmp_path / "file").write_text("x")
    message = refused(files(), f"runtime.store={tmp_path / 'file' / 'runs'}")
    assert "runtime.store" in message and "not writable" in message


def test_corrupted_artifact(files):
    file = files()
    exp = load(file)
    stage, store = plan(exp).stages["prompts"], Store(exp.runtime.store)
    execute([stage], store, exp.runtime, say=lambda _: None)
    name = next(n for n in store.files(stage.artifact_name) if n.startswith("rows/"))
    store.write_bytes(f"{stage.artifact_name}/{name}", b"PAR1")
    message = refused(file)
    assert "is corrupted" in message and name in message and "delete the folder" in message


def test_more_gpus_than_the_cluster_has(files):
    exp = load(files(), ["runtime.teacher.gpus=2", "runtime.train.gpus_per_worker=1"])
    stages = plan(exp).stages
    one, none = Node("one", 8, 1), Node("none", 8, 0)
    with pytest.raises(
        PladError, match=r"generation: 1 of 1 × \(2 GPUs, .* no node has more than 1 GPUs; lower runtime\.t"
    ):
        preflight.check_resources(exp, [stages["responses"]], [one, none])
    with pytest.raises(PladError, match=r"training: 1 of 1 × \(1 GPUs, .* there is no GPU; lower runtime\.train"):
        preflight.check_resources(exp, [stages["distill"]], [none])
    preflight.check_resources(exp, [stages["distill"]], [none, one])
