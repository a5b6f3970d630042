"""Tokens a second of the generate stage against bare ``vllm.LLM.generate`` on the same requests, after start-up:
``python -m benchmarks.generation``. One engine, one thread, a model with random weights: the demo's teacher, whose engine
takes a few milliseconds a request, or one of 6 layers × 288.

Runs are interleaved, each in a process of its own. Both sides count from the first request that the engine takes to the last
answer; the stage's share holds everything around the engine: Ray Data, part files after every block, progress.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Generate, Model, Runtime
from plad_ray.generate import requests, vllm_engine
from plad_ray.generate.pools import EnginePool, build_pools
from plad_ray.generate.vllm_actor import VllmEngine
from plad_ray.models.scratch import word_tokenizer
from plad_ray.records import PROMPT
from plad_ray.stages import Job

WORDS = [f"w{i}" for i in range(100)]
PROMPT_WORDS, MAX_TOKENS, MAX_LENGTH = 60, 24, 96
SIZES = {
    "demo": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "6x288": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 9},
}
#: where the engine notes when it got a block
BEGAN = "PLAD_BENCHMARK_BEGAN"


def write_model(folder: Path, size: str) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer(WORDS)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=2, **SIZES[size])
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_job(folder: Path, count: int, size: str, progress: Any) -> Job:
    store, draw = Store(f"{folder}/store"), random.Random(0)
    prompts = Artifact(store, "prompts-0")
    texts = [" ".join(draw.choices(WORDS, k=PROMPT_WORDS)) for _ in range(count)]
    rows = [{"prompt_id": f"{i:05d}", "split": "distill", "group": str(i), "prompt": t} for i, t in enumerate(texts)]
    prompts.write_rows(pa.Table.from_pylist(rows, schema=PROMPT))
    section = Model(path=str(write_model(folder / "model", size)), max_length=MAX_LENGTH).model_dump(mode="json")
    draws = [{"split": "distill", "temperatures": [0.7], "samples": 1, "limit": None}]
    config = {
        "policies": {"teacher": {"model": section, "engine": "vllm", "role": "teacher", "draws": draws}},
        "generate": Generate(max_tokens=MAX_TOKENS).model_dump(mode="json"),
        "seed": 0,
    }
    runtime = Runtime.model_validate({"teacher": {"cpus": 1}})
    return Job("responses", config, {"prompts": prompts}, Artifact(store, "responses-0"), runtime, progress)


def bare(job: Job, pool: EnginePool) -> tuple[int, float]:
    """Tokens and seconds of ``LLM.generate`` alone."""
    os.environ.update(vllm_engine.environment(pool))
    from vllm import LLM, SamplingParams

    rows = list(
        requests.encoded(requests.pool_requests(job.inputs["prompts"], pool, {"teacher": _draws(job)}, 0), pool)
    )
    llm = LLM(**vllm_engine.engine_kwargs(pool))
    shared = vllm_engine.sampling_params(pool.generate, pool.eos("teacher"))
    sampling = [SamplingParams(**shared, temperature=r["temperature"], seed=r["seed"]) for r in rows]
    prompts = [{"prompt_token_ids": row["prompt_token_ids"]} for row in rows]
    started = time.time()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    return sum(len(o.outputs[0].token_ids) for o in outputs), time.time() - started


def _draws(job: Job) -> list[dict[str, Any]]:
    return job.config["policies"]["teacher"]["draws"]


class NotingEngine(VllmEngine):
    """Notes when it gets a block."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        with Path(os.environ[BEGAN]).open("a", encoding="ascii") as notes:
            notes.write(f"{time.time()}\n")
        return super().__call__(rows)


def stage(job: Job, last: list[float]) -> tuple[int, float]:
    """Tokens and seconds of the generate stage, from the first request that its engine got to the last part file."""
    from plad_ray.generate import run as generate

    vllm_engine.VllmEngine = NotingEngine  # type: ignore[misc]
    outcome = generate.run(job)
    began = min(float(line) for line in Path(os.environ[BEGAN]).read_text(encoding="ascii").split())
    tokens = (
        outcome.metrics["tokens"]["teacher"]
        + outcome.rows_out
        - round(outcome.metrics["truncated"]["teacher"] * outcome.rows_out)
    )  # the bare engine counts EOS
    return tokens, last[0] - began


def measure(side: str, count: int, size: str) -> dict[str, float]:
    last = [0.0]

    def progress(done: float, total: float, unit: str, **notes: Any) -> None:
        last[0] = time.time()

    with tempfile.TemporaryDirectory(prefix="plad-generation-") as folder:
        os.environ[BEGAN] = f"{folder}/began"
        job = make_job(Path(folder), count, size, progress)
        tokens, seconds = bare(job, build_pools(job)[0]) if side == "bare" else stage(job, last)
    return {"tokens": tokens, "seconds": seconds}


def in_own_process(side: str, count: int, size: str) -> float:
    """Tokens a second."""
    command = [sys.executable, "-m", "benchmarks.generation", "--side", side, "--requests", str(count), "--model", size]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as Ray sets it for its workers; read when torch is imported
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, env=one_thread
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{side}: {found['tokens']:,} tokens in {found['seconds']:.2f} s", file=sys.stderr, flush=True)
    return found["tokens"] / found["seconds"]


def table(count: int, repeats: int, size: str) -> str:
    rates: dict[str, list[float]] = {"bare": [], "stage": []}
    for _ in range(repeats):
        for side, found in rates.items():
            found.append(in_own_process(side, count, size))
    alone, ours = median(rates["bare"]), median(rates["stage"])
    return "\n".join(
        [
            "| model | requests | bare vLLM tokens/s | generate stage tokens/s | ratio | target |",
            "|---|---|---|---|---|---|",
            f"| {size} | {count:,} | {alone:,.0f} | {ours:,.0f} | {ours / alone:.2f} | ≥ 0.9 with checkpointing, aim 0.95 |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=["bare", "stage"], help="one run of one side, in this process, as JSON")
    parser.add_argument("--model", choices=list(SIZES), default="demo")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given.side, given.requests, given.model)))
    else:
        print(table(given.requests, given.repeats, given.model))


if __name__ == "__main__":
    main()
