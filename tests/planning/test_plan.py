"""What plad plan predicts: known values by hand, and a training step that was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPTNeoConfig, LlamaConfig, T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

from plad_ray import config
from plad_ray.cli import app
from plad_ray.config import Lora, Pool, TrainRuntime
from plad_ray.errors import PladError
from plad_ray.planning import engines, hardware, memory, plan, roofline
from plad_ray.planning.command import Given, made
from plad_ray.planning.plan import Forecast
from plad_ray.planning.shapes import Shape, trainable
from plad_ray.train.forward import response_hidden
from plad_ray.train.layout import CONCATENATED
from plad_ray.train.seq2seq import seq2seq_layout
from plad_ray.train.shared import SHARED

ROOT = Path(__file__).parents[2]
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}


@pytest.fixture(scope="module")
def seven() -> Shape:
    return Shape(LlamaConfig(**LLAMA_7B), "bfloat16")


def test_llama_2_by_its_published_sizes(seven) -> None:
    thirteen = Shape(LlamaConfig(**LLAMA_13B), "bfloat16")
    assert (seven.parameters, thirteen.parameters) == (6_738_415_616, 13_015_864_320)
    assert seven.weights == 2 * 6_738_415_616 and seven.head == 32_000 * 4096
    assert seven.body == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    # a key and a value of every layer in 2 bytes
    assert (seven.kv_token, thirteen.kv_token) == (2 * 32 * 4096 * 2, 2 * 40 * 5120 * 2)
    four_bit = Shape(seven.config, "bfloat16", four_bit=True)
    assert four_bit.weights == pytest.approx(seven.body * 0.5625 + 2 * (2 * 32_000 * 4096 + 65 * 4096))
    # two matrices of r × 4096 on q and on v of each layer
    assert trainable(seven.lora(Lora(r=8, target_modules=("q_proj", "v_proj")))) == 32 * 2 * 2 * 8 * 4096


def test_grouped_heads_share_keys_and_values() -> None:
    grouped = LlamaConfig(**{**LLAMA_7B, "num_hidden_layers": 1, "num_key_value_heads": 8, "vocab_size": 100})
    assert Shape(grouped, "float32").kv_token == 2 * 8 * 128 * 4


T5_LARGE = {"d_model": 1024, "d_ff": 4096, "num_heads": 16, "d_kv": 64, "num_layers": 24, "num_decoder_layers": 24}


def test_t5_large_by_its_published_size_and_its_two_halves() -> None:
    large = Shape(T5Config(**T5_LARGE), "bfloat16")
    assert large.parameters == 737_668_096 and large.weights == 2 * 737_668_096
    assert large.encoder == 24 * (4 * 1024**2 + 2 * 1024 * 4096)
    assert large.body == 24 * (8 * 1024**2 + 2 * 1024 * 4096), "self-attention and cross-attention"
    assert large.cross == 24 * 2 * 1024**2 and large.kv_token == 24 * 2 * 1024 * 2
    uneven = Shape(T5Config(**{**T5_LARGE, "num_layers": 2, "num_decoder_layers": 1}), "bfloat16")
    assert (uneven.encoder_layers, uneven.layers) == (2, 1)


def test_work_of_an_encoder_decoder_is_what_torch_counts() -> None:
    """Forward pass of the trainer's own batch: 2 prompts of 9 tokens, three responses of 5 each."""
    sizes = {"d_model": 16, "d_ff": 24, "num_heads": 2, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 3}
    shape = Shape(T5Config(**sizes, vocab_size=50, decoder_start_token_id=0, use_cache=False), "float32")
    batch = seq2seq_layout(shape.config).collate(memory.like_rows(2, 9, 5, 3), 0, 1)
    tiny = T5ForConditionalGeneration._from_config(shape.config, attn_implementation="eager").eval()  # else uncounted
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        response_hidden(tiny, batch)
    length = batch.ids_SL.shape[1]
    row = roofline.Work(3 * length, length + 9, 0, encoded=9, readers=3)
    assert counter.get_total_flops() == 2 * roofline.forward(shape, row)


def test_pools_are_balanced_by_their_work() -> None:
    """One teacher engine of 2 devices takes 300 s, four student engines of 1 take 50: two and two of the 6 devices are done
    after 150 and 100 s."""
    held = {"stage": "responses", "device": "H100", "memory": {}, "total": 0.0, "capacity": 0.0, "fits": True, "tokens": 0,
            "cost": 0.0, "bound": "compute"}  # fmt: skip
    teacher = plan.Estimate(**held, count=1, devices=2, seconds=300.0)
    student = plan.Estimate(**held, count=4, devices=1, seconds=50.0)
    found = plan._balance(teacher, student)
    assert found == {"devices": 6, "seconds_now": 300.0, "seconds": 150.0, "teacher_replicas": 2, "student_replicas": 2}


def test_zero_divides_what_the_paper_says() -> None:
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters, 64 workers: 31.4, 16.6 and 1.9 GB."""
    states = [memory.zero_states(0, 7_500_000_000, stage, 64) for stage in (1, 2, 3)]
    sums = [s.weights + s.gradients + s.optimizer for s in states]
    assert [round(total / 1e9, 1) for total in sums] == [31.4, 16.6, 1.9]
    alone = memory.zero_states(100.0, 10, 0, 4, "float32")
    assert (alone.weights, alone.gradients, alone.optimizer) == (140, 40, 80)
    assert memory.zero_states(100.0, 10, 3, 4).weights == (100 + 20) / 4, "the frozen base is divided too"
    assert memory.zero_states(100.0, 10, 3, 4, offload="all").weights == 0


def test_peak_counts_what_lives_together() -> None:
    with torch.device("meta"):
        model, x = nn.Linear(4, 8, bias=False), torch.empty(3, 4)
    with memory.Peak(model) as peak, torch.no_grad():
        for _ in range(5):
            y = model(x)  # 3 · 8 floats, the ones before are gone
        z = y + 1
    assert (peak.most, peak.now) == (2 * 96, 2 * 96) and z.shape == (3, 8)
    del y, z
    assert peak.now == 0


def test_activations_grow_with_tokens_and_layers_and_shrink_with_checkpoints() -> None:
    def held(layers: int, prompt: int, **runtime) -> float:
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "vocab_size": 100}
        shape = Shape(LlamaConfig(**sizes, num_hidden_layers=layers, use_cache=False), "float32")
        rows = memory.like_rows(4, prompt, 10, 2)
        batch = (CONCATENATED if runtime.get("layout") else SHARED).collate(rows, 0, 1)
        return memory.training(shape, shape.lora(Lora()), TrainRuntime(micro_batch=4, **runtime), batch).activations

    two, three, four = (held(layers, 80) for layers in (2, 3, 4))
    assert four - three == pytest.approx(three - two, rel=0.01)
    assert held(4, 180) == pytest.approx(2 * four, rel=0.05), "200 tokens a row where there were 100"
    assert held(4, 80, gradient_checkpointing=True) < 0.6 * four
    assert held(4, 80, layout="concatenated") > 1.5 * four, "the prompt twice"


def test_cache_is_what_weights_leave_of_a_gpu(seven) -> None:
    pool = Pool(gpus=1, engine_kwargs={"gpu_memory_utilization": 0.5, "max_num_seqs": 100})
    held = engines.engine(seven, pool, hardware.device("h100"), 1000)
    assert held.cache == pytest.approx(0.5 * 80e9 - held.weights - held.workspace - held.process)
    assert held.sequences == int(held.cache // (1000 * 524_288)) and held.fits
    assert not engines.engine(seven, pool, hardware.device("l4"), 1000).fits, "13.5 GB of weights in half of 24 GB"
    half = pool.model_copy(update={"gpus": 0.5})
    assert engines.engine(seven, half, hardware.device("h100"), 1000) == held, "a share of the whole GPU's memory"


def test_decoding_alone_reads_all_weights_for_every_token(seven) -> None:
    h100 = hardware.device("h100")
    time = roofline.generation(seven, h100, 1, 1, requests=1, prompts=0, prompt=0, response=100)
    bytes_read = seven.weights + 50 * seven.kv_token
    assert time.seconds == pytest.approx(100 * bytes_read / (3.35e12 * roofline.BANDWIDTH))
    assert time.bound == "bandwidth"
    many = roofline.generation(seven, h100, 2, 64, requests=64, prompts=0, prompt=0, response=100)
    assert many.seconds < 1.5 * time.seconds


def test_training_is_six_flops_a_weight_and_token_and_four_where_weights_are_frozen(seven) -> None:
    h100 = hardware.device("h100")
    args = dict(rows=10.0, work=roofline.Work(1000, 0.0, 0), recompute=False)
    full, lora = (roofline.training(seven, h100, 4, full=f, **args).seconds for f in (True, False))
    assert full == pytest.approx(6 * seven.body * 10_000 / (989e12 * 4 * roofline.TRAINING))
    assert lora == pytest.approx(full * 4 / 6)
    fused = roofline.training(seven, h100, 4, full=True, fused=True, **args).seconds
    assert fused == pytest.approx(full * roofline.TRAINING / roofline.TRAINING_FUSED)


def test_plan_of_a_t5_student_and_the_layouts_that_the_trainer_takes(tmp_path) -> None:
    LlamaConfig(**{**LLAMA_13B, "num_hidden_layers": 2}).save_pretrained(tmp_path / "teacher")
    t5 = T5Config(**{**T5_LARGE, "num_layers": 2, "num_decoder_layers": 2}, decoder_start_token_id=0)
    for role, config_ in (("t5", t5), ("neo", GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]]))):
        config_.save_pretrained(tmp_path / role)
    exp = config.load(ROOT / "jobs/t5.yaml")

    def planned(student: str, *overrides: str) -> Forecast:
        configs = tuple(
            f"{n}={tmp_path / f / 'config.json'}" for n, f in (("teacher", "teacher"), ("student", student))
        )
        return made(config.load(ROOT / "jobs/t5.yaml", overrides), Given(prompts=1000, configs=configs))

    found = planned("t5")
    student = next(e for e in found.estimates if e.stage == "responses: student")
    drawn, test = 500, exp.evaluate.limit
    assert student.memory["cache"] == 64 * 576 * 2 * 2 * 1024 * 2, "keys and values of 64 prompts and responses"
    assert student.tokens == (drawn + 2 * test) * (512 + 64) and student.note == "64 sequences at once"
    assert "batches of sft-student, distill, distill-seqkd are encoder-decoder" in found.assumptions
    assert "batches of sft-teacher are shared" in found.assumptions and found.pools is not None
    neo = planned("neo", "student.model.max_length=640")
    why = "are concatenated: prompts are not shared by their candidates: the student is a gpt_neo model"
    assert any(why in line for line in neo.assumptions)
    alone = planned("t5", "data.pairs=pairs.jsonl", "evaluate.limit=1", "runtime.student.gpus=0")
    assert alone.pools is None and any("pool sizes are not compared" in line for line in alone.assumptions)


def test_plan_of_the_demo_and_of_the_papers_setting(tmp_path) -> None:
    demo = CliRunner().invoke(app, ["plan", str(ROOT / "jobs/demo.yaml"), "--json"])
    assert demo.exit_code == 0, demo.output
    found = json.loads(demo.output[demo.output.index("{") :])
    stages = [e["stage"] for e in found["estimates"]]
    assert stages == ["sft-teacher", "sft-student", "responses: teacher", "responses: student", "distill",
                      "distill-seqkd", "eval-responses: student"]  # fmt: skip
    assert all(e["fits"] and e["seconds"] > 0 for e in found["estimates"])
    paper = config.load(ROOT / "jobs/tldr_llama2.yaml")
    with pytest.raises(PladError, match=r"how many prompts train and distill will have .* --prompts N"):
        made(paper, Given())
    with pytest.raises(PladError, match=r"config.json of meta-llama/Llama-2-13b-hf is not on this machine.*--config"):
        made(paper, Given(prompts=1000))
    for role, sizes in (("teacher", LLAMA_13B), ("student", LLAMA_7B)):
        small = {**sizes, "num_hidden_layers": 2}  # its layers are all alike
        LlamaConfig(**small).save_pretrained(tmp_path / role)
    configs = tuple(f"{role}={tmp_path / role / 'config.json'}" for role in ("teacher", "student"))
    forecast = made(paper, Given(prompts=1000, configs=configs, on="a100-80"))
    teacher, student = (e for e in forecast.estimates if e.stage.startswith("responses"))
    assert teacher.devices == 2 and teacher.capacity == 160e9 and student.count == 4
    assert forecast.pools is not None and forecast.pools["seconds"] <= forecast.pools["seconds_now"]
    with pytest.raises(PladError, match="--on tpu: no such device"):
        made(paper, Given(on="tpu"))


def test_a_full_distillation_holds_gradients_and_moments_of_all_weights_and_its_reference(tmp_path) -> None:
    """bf16, ZeRO 0: 2 bytes of weight and of gradient a parameter and 8 of moments; 2 more of the frozen start."""
    for role, sizes in (("teacher", LLAMA_13B), ("student", LLAMA_7B)):
        LlamaConfig(**{**sizes, "num_hidden_layers": 2}).save_pretrained(tmp_path / role)
    configs = tuple(f"{role}={tmp_path / role / 'config.json'}" for role in ("teacher", "student"))
    changes = ["student.sft.method=full", "distill.method=full", "distill.objective={name: dpo}",
               "compare={adapter: {distill: {method: lora}}}", "runtime.train.zero_stage=0"]  # fmt: skip
    exp = config.load(ROOT / "jobs/tldr_llama2.yaml", changes)
    assert exp.student.model.dtype == "bfloat16"
    found = {e.stage: e for e in made(exp, Given(prompts=1000, configs=configs, on="a100-80")).estimates}
    parameters = Shape(LlamaConfig(**{**LLAMA_7B, "num_hidden_layers": 2}), "bfloat16").parameters
    full, adapter = found["distill"], found["distill-adapter"]
    assert full.memory["weights"] == 2 * 2 * parameters
    assert full.memory["gradients"] == 2 * parameters and full.memory["optimizer"] == 8 * parameters
    assert adapter.memory["gradients"] < 0.01 * full.memory["gradients"]
    assert adapter.memory["weights"] < 1.01 * 2 * parameters and full.seconds > adapter.seconds


MEASURE = """
from benchmarks import ours
from benchmarks.resident import forget_peak, peak
from benchmarks.shape import Shape, lora_model
from benchmarks.train_step import objective
from plad_ray.train.shared import SHARED
import deepspeed, psutil
shape = Shape(layers=6, hidden=256, intermediate=688, heads=4, vocabulary=8000)
ours.alone()
model = lora_model(shape)
before = psutil.Process().memory_info().rss / 2**20
forget_peak()
step = ours.stepper(shape, objective("simpo"), SHARED, model)
for _ in range(2):
    step()
print(peak() - before)
"""


def test_a_measured_step_needs_what_was_predicted() -> None:
    """Over the model's own memory: optimizer step of 4 pairs of 350 + 30 + 30 tokens, ZeRO-2, one worker.

    glibc hands back what is free at once here, so what is resident is what is alive.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    measured = float(done.stdout.strip().splitlines()[-1])
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4}
    shape = Shape(LlamaConfig(**sizes, vocab_size=8000, use_cache=False), "float32")
    model = shape.lora(Lora(r=8, dropout=0.0, target_modules=("q_proj", "v_proj")))
    batch = SHARED.collate(memory.like_rows(4, 350, 30, 2), 0, 1)
    held = memory.training(shape, model, TrainRuntime(micro_batch=4), batch)
    predicted = (held.total - held.weights - held.process) / 2**20
    print(f"predicted {predicted:.0f} MiB, measured {measured:.0f} MiB")
    assert predicted == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize("name", hardware.DEVICES)
def test_an_engine_on_a_gpu_works_on_as_many_sequences_as_vllm_takes_there(name, seven, monkeypatch):
    arguments = pytest.importorskip("vllm.engine.arg_utils")
    from vllm.usage.usage_lib import UsageContext

    gpu = hardware.device(name)
    platform = SimpleNamespace(
        get_device_total_memory=lambda: int(gpu.memory),
        get_device_name=lambda: f"NVIDIA {gpu.name}",
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    monkeypatch.setattr(arguments, "current_platform", platform)
    tokens, sequences = (found[UsageContext.LLM_CLASS] for found in arguments.EngineArgs.get_batch_defaults(1))
    by_default = engines.engine(seven, Pool(gpus=1), gpu, 1)
    given = {"max_num_batched_tokens": tokens, "max_num_seqs": sequences}
    assert by_default == engines.engine(seven, Pool(gpus=1, engine_kwargs=given), gpu, 1)
    assert by_default != engines.engine(seven, Pool(gpus=1, engine_kwargs=given | {"max_num_seqs": 100}), gpu, 1)
