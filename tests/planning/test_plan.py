"""What plad plan predicts: known values by hand, and a training step that was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from typer.testing import CliRunner

from plad_ray import config
from plad_ray.cli import app
from plad_ray.config import Lora, Pool, TrainRuntime
from plad_ray.errors import PladError
from plad_ray.planning import engines, hardware, memory, roofline
from plad_ray.planning.command import Given, made
from plad_ray.planning.shapes import Shape, trainable

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
        return memory.training(shape, shape.lora(Lora()), TrainRuntime(micro_batch=4, **runtime), rows).activations

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
    args = dict(rows=10.0, tokens=1000, context=0.0, positions=0, recompute=False)
    full, lora = (roofline.training(seven, h100, 4, full=f, **args).seconds for f in (True, False))
    assert full == pytest.approx(6 * seven.body * 10_000 / (989e12 * 4 * roofline.TRAINING))
    assert lora == pytest.approx(full * 4 / 6)


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
    rows = memory.like_rows(4, 350, 30, 2)
    held = memory.training(shape, model, TrainRuntime(micro_batch=4), rows)
    predicted = (held.total - held.weights - held.process) / 2**20
    print(f"predicted {predicted:.0f} MiB, measured {measured:.0f} MiB")
    assert predicted == pytest.approx(measured, rel=0.2)
