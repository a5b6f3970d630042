"""Every method that reads logits or draws samples, in process: it learns, in every ZeRO stage, whatever the micro-batch."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from train_jobs import column, distill_job, prompt_table, publish, session, sft_job

from plad_ray.artifacts import Store
from plad_ray.config import Model
from plad_ray.models.load import load_model
from plad_ray.models.policy import resolve
from plad_ray.records import PROMPT
from plad_ray.train.worker import work
from plad_ray.train.world import World
from tests.conftest import save_tiny_model

pytestmark = pytest.mark.usefixtures("gloo")
LORA = {"lora": {"r": 4, "dropout": 0.0, "target_modules": "all-linear"}}


def sure(folder: Path, seed: int, scale: float = 12.0, **config) -> Path:
    """A random model whose logits are spread out, so that there is something to learn from it."""
    save_tiny_model(folder, seed=seed, **config)
    model = load_model(resolve(Model(path=str(folder))))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("frozen")
    return {
        "student": sure(folder / "student", 0),
        "teacher": sure(folder / "teacher", 1),
        "padded": sure(folder / "padded", 1, vocab_size=64),
        "dpo": sure(folder / "dpo", 2),
        "reverse_dpo": sure(folder / "reverse", 3, 6.0),
    }


#: by method: its settings, the frozen models, the metric that falls
METHODS = {
    "kd": ({"name": "kd", "temperature": 2.0, "kd_ratio": 0.9}, ["teacher"], "kl"),
    "js": ({"name": "fdistill", "divergence": "js"}, ["teacher"], "loss"),
    "tvd": ({"name": "fdistill"}, ["teacher"], "loss"),
    "rkl": ({"name": "fdistill", "divergence": "rkl"}, ["teacher"], "loss"),
    "minillm": ({"name": "minillm"}, ["teacher"], "reverse_kl"),
    "minillm_lm": ({"name": "minillm", "lm_weight": 0.5, "teacher_mix": 0.0}, ["teacher"], "nll"),
    "minillm_sft": ({"name": "minillm", "sft_weight": 0.5}, ["teacher"], "nll"),
    "rkl_sft": ({"name": "fdistill", "divergence": "rkl", "sft_weight": 0.5}, ["teacher"], "nll"),
    "kd_chosen": ({"name": "kd", "text": "chosen"}, ["teacher"], "nll"),
    "gkd": ({"name": "gkd", "beta": 0.0}, ["teacher"], "loss"),
    "aligndistil": ({"name": "aligndistil", "ratio": 0.5}, ["dpo", "reverse_dpo"], "reverse_kl"),
    "aligndistil_on": (
        {"name": "aligndistil", "ratio": 0.5, "on_policy": True},
        ["dpo", "reverse_dpo"],
        "reverse_kl",
    ),
}


def method_job(store: Store, base: Path, models: dict[str, Path], method: str, **more):
    objective, names, _ = METHODS[method]
    return distill_job(store, base, frozen={n: models[n] for n in names}, objective=objective, **(LORA | more))


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method, store, models):
    job = method_job(store, models["student"], models, method, batch_size=24, epochs=10, schedule="constant")
    lines = session(job)
    metric = column(lines, METHODS[method][2])
    assert metric[-3:].mean() < 0.9 * metric[0], metric.tolist()


@pytest.mark.parametrize("method", ["minillm_lm", "gkd"])
def test_micro_batch_size_does_not_change_the_run(method, store, tiny_llama, models):
    """Samples included: their random numbers depend on the step and the row alone."""
    curves = []
    for micro_batch in (8, 3):
        train = {"micro_batch": micro_batch}
        job = method_job(store, tiny_llama, models, method, name=f"m{micro_batch}", train=train, epochs=1)
        curves.append(column(session(job)))
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["minillm"])
def test_zero_3_shards_frozen_models_and_changes_nothing(method, store, tiny_llama, models):
    curves = []
    for stage in (0, 3):
        job = method_job(store, tiny_llama, models, method, name=f"z{stage}", train={"zero_stage": stage}, epochs=1)
        curves.append(column(session(job)))
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-4, atol=1e-5)


def test_zero_3_with_frozen_adapters_on_the_students_base(store, tiny_llama):
    """DPO and reverse DPO as adapters of earlier stages; ZeRO 3 and 0 agree."""
    made = {}
    for name in ("dpo", "reverse_dpo"):
        sft = sft_job(store, {"path": str(tiny_llama)}, name=f"made-{name}", lora={"r": 4}, learning_rate=3e-2)
        sft.config["seed"] = len(name)
        session(sft)
        made[name] = sft.out
    curves = []
    for stage in (0, 3):
        job = distill_job(
            store,
            tiny_llama,
            name=f"a{stage}",
            frozen=dict.fromkeys(made, tiny_llama),
            train={"zero_stage": stage},
            objective={"name": "aligndistil", "on_policy": True},
            epochs=1,
        )
        job.inputs.update({f"frozen/{name}/0": artifact for name, artifact in made.items()})
        lines = session(job)
        curves.append(column(lines))
        assert lines[0]["alpha"] > 0.01, "the two adapters differ"
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["gkd", "minillm"])
def test_a_padded_vocabulary_is_cut(method, store, tiny_llama, models):
    """The teacher of 64 ids, of which 43 are tokens, has the same logits for those: a softmax over 43 alone."""
    small = method_job(store, tiny_llama, models, method, name="small", epochs=1)
    padded = method_job(store, tiny_llama, models | {"teacher": models["padded"]}, method, name="padded", epochs=1)
    teacher, other = (load_model(resolve(Model(path=str(models[n])))) for n in ("teacher", "padded"))
    with torch.no_grad():
        weights = other.state_dict()
        for name, tensor in teacher.state_dict().items():
            weights[name][: len(tensor)] = tensor
        other.load_state_dict(weights)
        other.get_output_embeddings().weight[43:] = 3.0
    other.save_pretrained(models["padded"])
    torch.testing.assert_close(column(session(padded)), column(session(small)), rtol=1e-5, atol=1e-5)


def test_samples_need_prompts_only(store, tiny_llama, models):
    """Without a language-model term MiniLLM trains on prompts that have no reference."""
    rows = [{**row, "reference": None} for row in prompt_table(split="distill").to_pylist()]
    job = method_job(store, tiny_llama, models, "minillm", epochs=1, train={"checkpoint_every": 1})
    job.inputs["prompts"] = publish(store, "prompts-bare", pa.Table.from_pylist(rows, schema=PROMPT))
    assert len(session(job)) == 3
    job = method_job(store, tiny_llama, models, "minillm_lm", epochs=1)
    job.inputs["prompts"] = publish(store, "prompts-none", pa.Table.from_pylist(rows, schema=PROMPT))
    assert "no prompt of split distill has a reference" in error_of(job)


def test_no_room_for_a_sample(store, tiny_llama, models):
    job = method_job(store, tiny_llama, models, "gkd", max_new_tokens=62)
    assert "generate.max_tokens 62 exceed student.model.max_length 64" in error_of(job)


def test_the_worker_checks_tokenizers_too(store, tiny_llama, tmp_path):
    foreign = save_tiny_model(tmp_path / "foreign", words=[f"v{i}" for i in range(40)])
    job = distill_job(store, tiny_llama, frozen={"teacher": foreign}, objective={"name": "kd"})
    assert "the teacher's tokenizer differs" in error_of(job)


def error_of(job) -> str:
    return work(job, World(0, 1, torch.device("cpu"), None, lambda metrics, folder: None))["error"]
