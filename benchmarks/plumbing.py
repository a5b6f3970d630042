"""Driver memory and time from request table over a fake engine to pairs: ``python -m benchmarks.plumbing``; with
``--scored`` the driver of scoring and evaluation too, on the same texts.

Each size runs in a process of its own, which is the driver. Half of the requests are the teacher's and half the student's.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.resident import forget_peak, peak
from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Distill, Evaluate, Generate, Model, Pairs, Runtime
from plad_ray.evaluate import run as evaluation
from plad_ray.generate import parts, requests, writing
from plad_ray.generate import run as generate
from plad_ray.generate.fake_engine import FakeEngine
from plad_ray.generate.pools import build_pools
from plad_ray.generate.responses import part_row
from plad_ray.generate.tasks import REQUEST
from plad_ray.models.scratch import word_tokenizer
from plad_ray.pairs import build
from plad_ray.records import PROMPT
from plad_ray.reward import run as scoring
from plad_ray.stages import Job, Outcome

WORDS = [f"w{i}" for i in range(2000)]
PROMPT_WORDS, RESPONSE_TOKENS = 60, 24
#: requests of a block
BLOCK = 256
PROMPTS_PER_FILE = 50_000
DRAW = {"split": "distill", "temperatures": [0.7], "samples": 1, "limit": None}


def write_prompts(store: Store, count: int) -> Artifact:
    """``count`` prompts of the distill split; every tenth has a reference, as ROUGE would outlast all else."""
    import pyarrow as pa  # after plad_ray, which chooses its allocator

    artifact, draw = Artifact(store, "prompts-0"), random.Random(0)
    for start in range(0, count, PROMPTS_PER_FILE):
        rows = [
            {"prompt_id": f"{draw.getrandbits(64):016x}", "split": "distill", "group": str(i), "messages": None,
             "prompt": " ".join(draw.choices(WORDS, k=PROMPT_WORDS)),
             "reference": None if i % 10 else " ".join(draw.choices(WORDS, k=RESPONSE_TOKENS))}
            for i in range(start, min(count, start + PROMPTS_PER_FILE))
        ]  # fmt: skip
        artifact.write_rows(pa.Table.from_pylist(rows, schema=PROMPT), f"distill-{start // PROMPTS_PER_FILE:05d}")
    return artifact


def write_model(folder: Path) -> Path:
    """So small that a training step is plumbing mostly; the fake engine reads no weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer(WORDS)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def generate_job(store: Store, model: Path, runtime: Runtime | None = None) -> Job:
    """Both roles on the prompts of ``store``; by default an engine each."""
    section = _section(model)
    policies = {
        role: {"model": section, "engine": "fake", "role": role, "draws": [DRAW]} for role in ("teacher", "student")
    }
    settings = Generate(max_tokens=RESPONSE_TOKENS).model_dump(mode="json")
    pool = {"batch_size": BLOCK}
    return Job(
        "responses",
        {"policies": policies, "generate": settings, "seed": 0},
        {"prompts": Artifact(store, "prompts-0")},
        Artifact(store, "responses-0"),
        runtime or Runtime.model_validate({"teacher": pool, "student": pool}),
    )


def _section(model: Path) -> dict[str, Any]:
    return Model(path=str(model), max_length=128).model_dump(mode="json")


def pairs_job(store: Store) -> Job:
    config = {"pairs": Pairs().model_dump(mode="json"), "chat": False, "seed": 0}
    inputs = {"prompts": Artifact(store, "prompts-0"), "responses": Artifact(store, "responses-0")}
    return Job("pairs", config, inputs, Artifact(store, "pairs-0"), Runtime())


def training_job(store: Store, model: Path, runtime: Runtime) -> Job:
    """One epoch of PLaD on the pairs of ``pairs_job``."""
    training = Distill().model_dump(mode="json", exclude={"select_on_dev", "rounds"})
    training["objective"] = {"name": "plad_rank", **asdict(Distill().objective.built())}
    config = {"kind": "distill", "model": _section(model), "training": training, "seed": 0}
    return Job("distill", config, {"pairs": Artifact(store, "pairs-0")}, Artifact(store, "distill-0"), runtime)


def scoring_job(store: Store) -> Job:
    inputs = {"prompts": Artifact(store, "prompts-0"), "responses": Artifact(store, "responses-0")}
    scorer = {"name": "benchmarks.plumbing:words_in"}
    return Job("scores", {"scorer": scorer}, inputs, Artifact(store, "scores-0"), Runtime())


def words_in(prompt: str, response: str, reference: str | None) -> float:
    """A scorer that costs nothing."""
    return float(response.count(" "))


def evaluation_job(store: Store) -> Job:
    """The distill prompts stand for a test set; no arm is trained, so the initial student is compared with the teacher."""
    section = Evaluate(split="distill", temperatures=(0.7,)).model_dump(mode="json")
    inputs = {key: Artifact(store, f"{key}-0") for key in ("prompts", "responses", "scores")}
    inputs["eval_responses"] = inputs["responses"]
    config = {"evaluate": section, "arms": {}, "scorer": True, "seed": 0}
    return Job("evaluate", config, inputs, Artifact(store, "evaluation-0"), Runtime())


def generate_here(job: Job) -> int:
    """The generate stage without Ray: the fake engine block by block in this process. How many requests there were."""
    tally = Counter[str]()
    for pool in build_pools(job):
        every = requests.pool_requests(job.inputs["prompts"], pool, writing.draws(job, pool), job.config["seed"])
        asked = requests.encoded(every, pool)
        engine = FakeEngine({name: pool.eos(name)[0] for name in pool.policies}, RESPONSE_TOKENS, {})
        by_policy = dict.fromkeys(pool.policies, pool)
        block: list[dict[str, Any]] = []
        for request in parts.remaining(asked, parts.answered(job.out), tally):
            block.append(request)
            if len(block) == BLOCK:
                _answer(job, engine, by_policy, block)
                block = []
        _answer(job, engine, by_policy, block)
    return parts.publish(job.out, tally["total"])[0]


def _answer(job: Job, engine: FakeEngine, by_policy: dict[str, Any], block: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    answers = engine(pa.Table.from_pylist(block, schema=REQUEST)).to_pylist()
    parts.write_part(job.out, [part_row(by_policy, answer) for answer in answers])


def measure(count: int, scored: bool) -> dict[str, float]:
    """Seconds and peak MiB of the stages for ``count`` requests, in this process."""
    with tempfile.TemporaryDirectory(prefix="plad-plumbing-") as folder:
        store = Store(f"{folder}/store")
        write_prompts(store, count // 2)
        model = write_model(Path(folder) / "model")
        found: dict[str, float] = {"requests": count}
        stages: list[tuple[str, Job, Callable[[Job], Outcome]]] = [
            ("generate", generate_job(store, model), generate.run),
            ("pairs", pairs_job(store), build.run),
        ]
        if scored:
            stages += [("scores", scoring_job(store), scoring.run), ("evaluate", evaluation_job(store), evaluation.run)]
        for name, job, run in stages:
            forget_peak()
            started = time.time()
            outcome = run(job)
            found |= {f"{name}_s": time.time() - started, f"{name}_mib": peak()}
            if name == "generate":
                assert outcome.rows_out == count, outcome
                found["start_s"] = outcome.metrics["engine_start_seconds"]
        return found


def in_own_process(count: int, scored: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.plumbing", "--here", str(count), *(["--scored"] if scored else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(counts: list[int], scored: bool) -> str:
    """Markdown; ratios are to the first of ``counts``. Time counts from the first block that an engine gave back."""
    more = ["scores", "evaluate"] if scored else []
    lines = [
        "| requests | generate s | of it start | pairs s | ms a request | ratio | driver's peak MiB | ratio |"
        + "".join(f" {name} s | its peak MiB |" for name in more),
        "|---|---|---|---|---|---|---|---|" + "---|---|" * len(more),
    ]
    first = None
    for count in counts:
        found = in_own_process(count, scored)
        each = 1000 * (found["generate_s"] - found["start_s"] + found["pairs_s"]) / count
        memory = max(found["generate_mib"], found["pairs_mib"])
        first = first or (each, memory)
        lines.append(
            f"| {count:,} | {found['generate_s']:.1f} | {found['start_s']:.1f} | {found['pairs_s']:.1f} | {each:.3f} | "
            f"{each / first[0]:.2f} | {memory:.0f} | {memory / first[1]:.2f} |"
            + "".join(f" {found[f'{name}_s']:.1f} | {found[f'{name}_mib']:.0f} |" for name in more)
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--here", action="store_true", help="one count, in this process, as JSON")
    parser.add_argument("--scored", action="store_true", help="scoring and evaluation too")
    given = parser.parse_args()
    print(json.dumps(measure(given.counts[0], given.scored)) if given.here else table(given.counts, given.scored))


if __name__ == "__main__":
    main()
