"""What plumbing costs on a cluster of several raylets, and what that means for many prompts on many GPUs:
``python -m benchmarks.scaling`` prints the table of docs/SCALING.md; ``--write`` puts it there.

Costs are processor time where that can be told (the driver is a process of its own), since wall time on a machine that
others use says little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks import marks
from benchmarks.__main__ import machine
from benchmarks.clock import now, since
from benchmarks.plumbing import (
    BLOCK,
    PROMPT_WORDS,
    RESPONSE_TOKENS,
    evaluation_job,
    generate_job,
    pairs_job,
    scoring_job,
    training_job,
    write_model,
    write_prompts,
)
from benchmarks.resident import forget_peak, peak
from plad_ray.artifacts import Artifact, Store
from plad_ray.cluster import connect
from plad_ray.config import Data, Pool, Runtime
from plad_ray.data import prepare
from plad_ray.evaluate import run as evaluation
from plad_ray.generate import run as generate
from plad_ray.pairs import build
from plad_ray.planning import engines, hardware, roofline
from plad_ray.planning.shapes import Shape
from plad_ray.reward import run as scoring
from plad_ray.stages import Job
from plad_ray.train import run as training

DOCUMENT = Path(__file__).parents[1] / "docs/SCALING.md"
PROMPTS, GPUS = 10**8, 1000
#: of the prediction: LLaMA-2's sizes, and tokens of a prompt and of a response as in the paper's TL;DR
SEVEN = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
THIRTEEN = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
TOKENS = 350, 30
#: seconds of a small read from an object store
GET_S = 0.02
#: what a training checkpoint of LoRA r 8 on q and v of LLaMA-2 7B holds: weights and two moments in fp32
CHECKPOINT_FLOATS = 3 * 32 * 2 * 2 * 8 * 4096


def measure(raylets: int, workers: int, count: int) -> dict[str, float]:
    """One size in this process: the stages between prompts and pairs with ``workers`` fake engines a role."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2 + workers, "object_store_memory": 150_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(raylets - 1):
            cluster.add_node(**node)
        return _measured(cluster.address, workers, count)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _measured(address: str, workers: int, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="plad-scaling-") as folder:
        store = Store(f"{folder}/store")
        found = _prompts(store, Path(folder), count // 2)
        model = write_model(Path(folder) / "model")
        runtime: dict[str, Any] = {"ray_address": address} | {
            role: {"batch_size": BLOCK, "replicas": workers} for role in ("teacher", "student")
        }
        connect(Runtime.model_validate(runtime))
        job = generate_job(store, model, Runtime.model_validate(runtime))
        forget_peak()
        began, started = now(), time.time()
        outcome = generate.run(job)
        assert outcome.rows_out == count, outcome
        spent = since(began)
        steady = time.time() - started - outcome.metrics["engine_start_seconds"]
        found |= {"rows_per_s": count / steady, "driver_ms": 1000 * spent.cpu / count, "driver_mib": peak()}
        began = now()
        build.run(pairs_job(store))
        spent = since(began)
        found |= {"pairs_ms": 1000 * spent.cpu / (count // 2), "pairs_per_s": count / 2 / spent.wall}
        for name, run, one in (
            ("scores", scoring.run, scoring_job(store)),
            ("evaluate", evaluation.run, evaluation_job(store)),
        ):
            began = now()
            run(one)
            found[f"{name}_per_s"] = count / since(began).wall
        return found | _trained(training_job(store, model, _training(address, workers))) | _files(store, job.out)


def _training(address: str, workers: int) -> Runtime:
    return Runtime.model_validate({"ray_address": address, "train": {"workers": workers}})


def _trained(job: Job) -> dict[str, float]:
    began = now()
    outcome = training.run(job)
    seconds = outcome.metrics["train_seconds"]
    return {"trained_per_s": outcome.rows_out / seconds, "train_start_s": since(began).wall - seconds}


def _prompts(store: Store, folder: Path, count: int) -> dict[str, float]:
    """The prompts stage, and the prompts that the other stages read."""
    write_prompts(store, count)
    source = folder / "prompts.jsonl"
    with source.open("w") as lines:
        for row in Artifact(store, "prompts-0").rows(["prompt"]):
            lines.write(json.dumps({"prompt": row["prompt"], "reference": "w1"}) + "\n")
    data = Data(source="files", path=str(source)).model_dump(mode="json")
    forget_peak()
    before, began = peak(), now()
    prepare.run(Job("prompts", {"data": data, "seed": 0, "source": {}}, {}, Artifact(store, "prompts-1"), Runtime()))
    spent = since(began)
    return {
        "prompt_ms": 1000 * spent.cpu / count,
        "prompts_per_s": count / spent.wall,
        "prompt_bytes": (peak() - before) * 2**20 / count,
    }


def _files(store: Store, out: Artifact) -> dict[str, float]:
    """A manifest over the files of the responses, and a training checkpoint."""
    began = now()
    out.finish({"name": "responses"})
    manifest = since(began).wall
    states = torch.zeros(CHECKPOINT_FLOATS).numpy().tobytes()
    began = now()
    store.write_bytes("checkpoint", states)
    return {"manifest_s": manifest, "checkpoint_s": since(began).wall}


@dataclass(frozen=True)
class Demand:
    """What ``GPUS`` H100 ask of the plumbing while both models generate."""

    rows_per_s: float
    hours: float


def demand() -> Demand:
    """By the roofline of `plad plan`: the 13B teacher on 2 GPUs an engine, the student on one, both done together."""
    device = hardware.device("h100")
    seconds = 0.0  # of one GPU, for a prompt's two requests
    for sizes, gpus in ((THIRTEEN, 2.0), (SEVEN, 1.0)):
        shape = Shape(LlamaConfig(**sizes), "bfloat16")
        held = engines.engine(shape, Pool(gpus=gpus), device, sum(TOKENS))
        time_ = roofline.generation(shape, device, gpus, max(1, held.sequences), 10_000, 10_000, *TOKENS)
        seconds += time_.seconds * gpus / 10_000
    return Demand(2 * GPUS / seconds, PROMPTS * seconds / GPUS / 3600)


def in_own_process(*sizes: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scaling", "--here", *map(str, sizes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(raylets: int, counts: list[int], rows: int) -> str:
    """Three Markdown tables: how fast each stage is, what it costs, and what that predicts."""
    found: list[dict[str, Any]] = [{"workers": n, **in_own_process(raylets, n, rows)} for n in counts]
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}; {raylets} raylets, {rows:,} requests, prompts of "
        f"{PROMPT_WORDS} tokens, responses of up to {RESPONSE_TOKENS}.",
        "",
        "| fake engines a role, training workers | prompts/s | generated rows/s | scored texts/s | pairs: prompts/s | "
        "trained pairs/s | evaluated rows/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for f in found:
        rates = (f[f"{stage}_per_s"] for stage in ("prompts", "rows", "scores", "pairs", "trained", "evaluate"))
        lines.append(f"| {f['workers']} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |")
    lines += [
        "",
        "| fake engines a role | driver: ms of CPU a row | driver's peak MiB | pairs: ms of CPU a prompt | "
        "prompts: ms of CPU a row | prompts: bytes held a row | training: s beside its steps | manifest s | checkpoint s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        lines.append(
            f"| {f['workers']} | {f['driver_ms']:.3f} | {f['driver_mib']:.0f} | {f['pairs_ms']:.3f} | "
            f"{f['prompt_ms']:.3f} | {f['prompt_bytes']:,.0f} | {f['train_start_s']:.1f} | "
            f"{f['manifest_s']:.2f} | {f['checkpoint_s']:.2f} |"
        )
    return "\n".join([*lines, "", *prediction(found[-1])])


def prediction(found: dict[str, float]) -> list[str]:
    """``PROMPTS`` prompts on ``GPUS`` GPUs, by the costs of one measured size."""
    wanted = demand()
    driver = 1000 / found["driver_ms"]
    checkpoint = 4 * CHECKPOINT_FLOATS / 2**20
    files = 2 * PROMPTS / BLOCK
    footers = files * GET_S / 3600
    return [
        f"| {PROMPTS:,} prompts, {GPUS:,} H100 | needed | there is | |",
        "|---|---|---|---|",
        f"| responses a second through one driver | {wanted.rows_per_s:,.0f} (GPUs busy for {wanted.hours:,.1f} h) | "
        f"{driver:,.0f} | {_headroom(driver / wanted.rows_per_s)} |",
        f"| footers of {files:,.0f} part files, read one after another at {1000 * GET_S:g} ms | {footers:.1f} h | "
        f"{wanted.hours:,.1f} h of generation | {_headroom(wanted.hours / footers)} |",
        f"| memory of the prompts stage | {found['prompt_bytes'] * PROMPTS / 1e9:,.0f} GB | 1,000 GB, a large node | "
        f"{_headroom(1e12 / (found['prompt_bytes'] * PROMPTS))} |",
        f"| memory of the driver: a byte a request | {2 * PROMPTS / 1e9:.1f} GB | 16 GB, the head of values.yaml | "
        f"{_headroom(16e9 / (2 * PROMPTS))} |",
        f"| time of prompts and pairs, one process each | {_hours(found, PROMPTS):.0f} h | "
        f"{wanted.hours:,.1f} h of generation | {_headroom(wanted.hours / _hours(found, PROMPTS))} |",
        f"| a training checkpoint, {checkpoint:.0f} MiB | {found['checkpoint_s']:.2f} s | every 100 steps | "
        "does not grow with prompts |",
    ]


def _hours(found: dict[str, float], prompts: int) -> float:
    return prompts * (found["prompt_ms"] + found["pairs_ms"]) / 3.6e6


def _headroom(ratio: float) -> str:
    return f"{ratio:.1f} ×" if ratio >= 1 else f"**breaks**: {ratio:.2f} ×"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raylets", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4], help="fake engines a role")
    parser.add_argument("--rows", type=int, default=20_000, help="requests, half of each role")
    parser.add_argument("--here", type=int, nargs=3, help="raylets, workers and requests of one size, as JSON")
    parser.add_argument("--write", action="store_true", help=f"into {DOCUMENT.name}")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(*given.here)))
        return
    table = report(given.raylets, given.workers, given.rows)
    print(table)
    if given.write:
        marks.put(DOCUMENT, "measured", table)


if __name__ == "__main__":
    main()
