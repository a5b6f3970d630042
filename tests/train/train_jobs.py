"""Small training jobs, and the worker function run in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Runtime
from plad_ray.objectives import build
from plad_ray.records import PROMPT, pair_schema
from plad_ray.stages import Job
from plad_ray.train.logprobs import ResponseValues
from plad_ray.train.loop import Run
from plad_ray.train.worker import _start, prepare, sections, work
from plad_ray.train.world import World

WORDS = [f"w{i}" for i in range(40)]


def publish(store: Store, name: str, table: pa.Table) -> Artifact:
    artifact = Artifact(store, name)
    artifact.write_rows(table)
    artifact.finish({})
    return artifact


def prompt_table(n: int = 24, split: str = "train") -> pa.Table:
    """Prompts of 2–4 words; the reference is the last word, and in every second row the first one too."""
    rows = []
    for i in range(n):
        words = [WORDS[(7 * i + j) % 40] for j in range(2 + i % 3)]
        reference = " ".join([words[-1], words[0]][: 1 + i % 2])
        prompt = " ".join(words)
        rows.append({"prompt_id": f"p{i}", "split": split, "group": f"p{i}", "prompt": prompt, "reference": reference})
    return pa.Table.from_pylist([{**row, "messages": None} for row in rows], schema=PROMPT)


def pair_rows_table(n: int = 24) -> pa.Table:
    """Chosen repeats the prompt's last word, rejected is two other words; every fifth rejected was cut off."""
    rows = []
    for i, row in enumerate(prompt_table(n).to_pylist()):
        rejected = f"{WORDS[(11 * i) % 40]} {WORDS[(5 * i + 3) % 40]}"
        rows.append(
            {
                "prompt": row["prompt"],
                "chosen": row["reference"],
                "rejected": rejected,
                "chosen_score": 1.0,
                "rejected_score": 0.25 * (i % 4),
                "score_gap": 1.0 - 0.25 * (i % 4),
                "order": "pseudo",
                "prompt_id": row["prompt_id"],
                "chosen_rid": f"c{i}",
                "rejected_rid": f"r{i}",
                "chosen_finish_reason": "stop",
                "rejected_finish_reason": "length" if i % 5 == 0 else "stop",
            }
        )
    return pa.Table.from_pylist(rows, schema=pair_schema(chat=False))


def distill_job(
    store: Store,
    base: Path,
    name: str = "distill-0",
    train: dict | None = None,
    frozen: dict[str, Path] | None = None,
    max_new_tokens: int = 6,
    **training,
) -> Job:
    """A distillation of ``base`` on 24 pairs (or on 24 references, as its objective asks): 3 steps an epoch of 8.

    ``frozen``: folders of the models that the objective reads, by name.
    """
    objective = build(**_objective(training))
    if objective.trains_on == "references":
        inputs = {"prompts": publish(store, "prompts-distill", prompt_table(split="distill"))}
    else:
        inputs = {"pairs": publish(store, "pairs-0", pair_rows_table())}
    settings = {"batch_size": 8, "learning_rate": 1e-2, "epochs": 2, "lora": {"r": 4, "dropout": 0.0}} | training
    config = {
        "kind": "distill",
        "model": {"path": str(base), "max_length": 64},
        "model_identity": {},
        "training": settings,
        "seed": 0,
        "frozen": {key: {"path": str(folder), "max_length": 64} for key, folder in (frozen or {}).items()},
    }
    if objective.rollout is not None:
        config["max_new_tokens"] = max_new_tokens
    runtime = Runtime.model_validate({"train": {"micro_batch": 4, "zero_stage": 0, **(train or {})}})
    return Job("distill", config, inputs, Artifact(store, name), runtime)


def _objective(training: dict) -> dict:
    """Arguments of ``build`` from a training section."""
    section = dict(training.get("objective", {"name": "plad_rank"}))
    return {"name": section.pop("name"), "params": section}


def session(
    job: Job, resume: Path | None = None, keep: Path | None = None, preempted: Callable[[], bool] = lambda: False
) -> list[dict[str, float]]:
    """Run the worker function here; checkpoints are copied to ``keep``/<step>. Returns the metric lines."""

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        assert folder is not None
        if keep is not None:
            shutil.copytree(folder, keep / str(int(metrics["step"])))

    result = work(job, World(0, 1, torch.device("cpu"), resume, report, preempted))
    assert "error" not in result, result["error"]
    lines = (job.out.local_folder() / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def start(job: Job) -> Run:
    """The run that the worker function would do, before its first step."""
    world = World(0, 1, torch.device("cpu"), None, lambda metrics, folder: None)
    model, training = sections(job.config)
    parts = prepare(job, world, model, training)
    module = ResponseValues(parts.model, parts.objective, parts.frozen)
    return _start(job, world, model, training, parts, module)


def column(lines: list[dict[str, float]], name: str = "loss") -> torch.Tensor:
    return torch.tensor([line[name] for line in lines], dtype=torch.float64)


def sft_job(store: Store, model: dict, name: str = "sft-0", train: dict | None = None, **training) -> Job:
    """SFT on 24 prompts."""
    prompts = publish(store, "prompts-0", prompt_table())
    settings = {"batch_size": 8, "learning_rate": 1e-2, "epochs": 2} | training
    config = {
        "kind": "sft",
        "model": {"max_length": 64, **model},
        "model_identity": {},
        "training": settings,
        "seed": 0,
    }
    runtime = Runtime.model_validate({"train": {"micro_batch": 8, "zero_stage": 0, **(train or {})}})
    return Job("sft", config, {"prompts": prompts}, Artifact(store, name), runtime)
