"""What every training worker does, from artifacts to artifact. Knows nothing of Ray but the handful in ``World``."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerBase

from plad_ray.config import Distill, Model, Sft, Training
from plad_ray.errors import PladError
from plad_ray.models.load import DTYPES, load_base, load_tokenizer
from plad_ray.models.policy import Policy, resolve
from plad_ray.models.scratch import make
from plad_ray.models.tokens import eos_ids, pad_id
from plad_ray.objectives import Objective, build
from plad_ray.stages import Job
from plad_ray.train import checkpoint, deepspeed
from plad_ray.train.adapter import save_adapter, save_model, with_lora
from plad_ray.train.layout import Row
from plad_ray.train.logprobs import ResponseValues, causal_model
from plad_ray.train.loop import Run, dry_step, train
from plad_ray.train.rows import pair_rows, pair_table, sft_rows, sft_table
from plad_ray.train.sampler import Plan


@dataclass(frozen=True)
class World:
    """A worker's place and its two ways out: the checkpoint to resume from, and where to hand the next one."""

    rank: int
    workers: int
    device: torch.device
    resume: Path | None
    report: Callable[[dict[str, float], Path | None], None]  # collective; the folder is given on rank 0 only


@dataclass(frozen=True)
class Parts:
    """What is made before DeepSpeed starts."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    policy: Policy | None  # None: a model made from scratch
    rows: list[Row]
    objective: Objective
    rows_in: int
    dropped: dict[str, int]


def work(job: Job, world: World) -> dict[str, Any]:
    """Train and, on rank 0, write files/. Returns {rows_in, rows_out, dropped, metrics}, or {error} for the user.

    Errors of input are agreed on by all workers first, so none waits for another that has stopped.
    """
    model, training = sections(job.config)
    parts: Parts | None = None
    error: PladError | None = None
    try:
        parts = prepare(job, world, model, training)
    except PladError as raised:
        error = raised
    if _any_failed(error is not None, world) or parts is None:
        return {"error": str(error) if error else "another worker could not start; its message is in its log"}
    try:
        return _train(job, world, model, training, parts)
    except PladError as raised:  # from globally reduced values, so raised by all workers alike
        return {"error": str(raised)}


def sections(config: dict[str, Any]) -> tuple[Model, Sft | Distill]:
    kind = Sft if config["kind"] == "sft" else Distill
    return Model.model_validate(config["model"]), kind.model_validate(config["training"])


def prepare(job: Job, world: World, model: Model, training: Sft | Distill) -> Parts:
    """Read the table, load or make model and tokenizer, tokenise."""
    seed = job.config["seed"]
    table = job.inputs["prompts" if isinstance(training, Sft) else "pairs"].table()
    cut = sft_table if isinstance(training, Sft) else pair_table
    kept, dropped = cut(table, training.limit)
    policy: Policy | None
    network: nn.Module
    tokenizer: PreTrainedTokenizerBase
    if model.scratch is not None and "base/0" not in job.inputs:
        policy = None
        network, tokenizer = make(model.scratch, train_texts(table), seed)
    else:
        policy = resolve(model, *_bases(job))
        tokenizer = load_tokenizer(policy)
        network = _network(policy, model, training, seed)
    if job.runtime.train.gradient_checkpointing:
        causal_model(network).gradient_checkpointing_enable({"use_reentrant": False})
    if isinstance(training, Sft):
        objective = build("sft", {})
        rows = sft_rows(kept, tokenizer, model)
    else:
        objective = build(training.objective.name, training.objective.params)
        rows = pair_rows(kept, tokenizer, model, objective)
    return Parts(network, tokenizer, policy, rows, objective, table.num_rows, dropped)


def _network(policy: Policy, model: Model, training: Sft | Distill, seed: int) -> nn.Module:
    full = isinstance(training, Sft) and training.method == "full"
    if full and policy.adapter is not None:
        raise PladError(
            "sft.method full cannot continue an adapter: merge it into its base first (plad merge), or use lora"
        )
    base = load_base(policy, model.dtype, model.load_in_4bit)
    return base if full else with_lora(base, policy, training.lora, seed)


def _train(job: Job, world: World, model: Model, training: Sft | Distill, parts: Parts) -> dict[str, Any]:
    run = _start(job, world, model, training, parts)
    told = [0.0]

    def progress(done: int, total: int, **notes: float) -> None:
        if time.monotonic() - told[0] > 0.5 or done == total:
            told[0] = time.monotonic()
            job.progress(done, total, "steps", **notes)

    def at_checkpoint(step: int) -> None:
        with tempfile.TemporaryDirectory(prefix="plad-checkpoint-") as folder:
            checkpoint.save(run.engine, Path(folder), {"step": step, "lines": run.lines})
            world.report({"step": step, "loss": run.lines[-1]["loss"]}, Path(folder) if world.rank == 0 else None)

    train(run, at_checkpoint, job.runtime.train.checkpoint_every, progress)
    _publish(job, world, model, parts, run)
    return {
        "rows_in": parts.rows_in,
        "rows_out": len(parts.rows),
        "dropped": parts.dropped,
        "metrics": _summary(run, training),
    }


def _start(job: Job, world: World, model: Model, training: Training, parts: Parts) -> Run:
    """Engine up, state restored."""
    runtime = job.runtime.train
    module = ResponseValues(parts.model.to(world.device), parts.objective)
    module.train()
    snapshot = checkpoint.load(world.resume) if world.resume is not None else None
    if snapshot is not None:
        checkpoint.restore_weights(module, snapshot)
    plan = Plan(len(parts.rows), training.batch_size, training.epochs, job.config["seed"])
    micros = -(-min(training.batch_size, plan.total) // (world.workers * runtime.micro_batch))
    config = deepspeed.engine_config(training, runtime, model.dtype, world.workers, micros)
    run = Run(
        engine=deepspeed.start_engine(module, training, config),
        objective=parts.objective,
        rows=parts.rows,
        plan=plan,
        training=training,
        micro_batch=runtime.micro_batch,
        rank=world.rank,
        workers=world.workers,
        vocabulary=causal_model(parts.model).config.get_text_config().vocab_size,
        pad=pad_id(parts.tokenizer),
    )
    if snapshot is not None:
        checkpoint.restore_moments(run.engine, snapshot, lambda: dry_step(run))
        run.resume(snapshot.meta["step"], snapshot.meta["lines"])
    return run


def _publish(job: Job, world: World, model: Model, parts: Parts, run: Run) -> None:
    """Gather the weights and write files/ (rank 0)."""
    gathered = checkpoint.gather(run.engine)
    if world.rank != 0:
        return
    weights = {key.removeprefix("weight/model."): tensor for key, tensor in gathered.items()}
    with tempfile.TemporaryDirectory(prefix="plad-model-") as name:
        folder = Path(name)
        if hasattr(parts.model, "peft_config"):
            assert parts.policy is not None
            save_adapter(parts.model, weights, folder, parts.tokenizer, parts.policy)
        else:
            eos = eos_ids(parts.tokenizer, model)
            save_model(causal_model(parts.model), weights, folder, parts.tokenizer, eos, DTYPES[model.dtype])
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in run.lines))
        job.out.store.delete(job.out.file("files"))
        job.out.store.upload(folder, job.out.file("files"))


def _summary(run: Run, training: Training) -> dict[str, Any]:
    """Manifest metrics: the last line's values and what they cost."""
    last = run.lines[-1]
    kept = {name: value for name, value in last.items() if name not in ("seconds", "epoch", "lr")}
    return {**kept, "steps": run.plan.steps, "epochs": training.epochs, "train_seconds": last["seconds"]}


def _bases(job: Job) -> list[Any]:
    keys = sorted((key for key in job.inputs if key.startswith("base/")), key=lambda key: int(key.split("/")[1]))
    return [job.inputs[key] for key in keys]


def train_texts(prompts: pa.Table) -> list[str]:
    """What a tokenizer made here learns from: the whole train shard, whatever ``sft.limit``, so that teacher and student
    made alike share one vocabulary. Prompts and references apart: joined, the words at the seam would be one."""
    shard = prompts.filter(pc.equal(prompts["split"], "train"))
    return [text for name in ("prompt", "reference") for text in shard.column(name).to_pylist() if text]


def _any_failed(failed: bool, world: World) -> bool:
    if world.workers == 1:
        return failed
    flag = torch.tensor([float(failed)], device=world.device)
    dist.all_reduce(flag)
    return bool(flag.item() > 0)
