"""What every training worker does, from artifacts to artifact. Knows nothing of Ray but what ``World`` holds."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerBase

from plad_ray.config import Distill, Model, Sft, Track, Training
from plad_ray.errors import PladError
from plad_ray.models.load import DTYPES, is_seq2seq, load_base, load_config, load_tokenizer
from plad_ray.models.policy import Policy, resolve
from plad_ray.models.scratch import make
from plad_ray.models.tokens import check_same_sequences, check_same_tokens, eos_ids, pad_id
from plad_ray.objectives import Objective, build
from plad_ray.stages import Job
from plad_ray.track.base import Subject
from plad_ray.track.choose import trackers
from plad_ray.train import checkpoint, deepspeed
from plad_ray.train.adapter import save_adapter, save_model, with_lora
from plad_ray.train.forward import causal_model
from plad_ray.train.frozen import FrozenModels, load_frozen
from plad_ray.train.kernels import fused
from plad_ray.train.known import with_frozen_logps
from plad_ray.train.layout import Layout, Row
from plad_ray.train.logprobs import ResponseValues
from plad_ray.train.loop import Run, checkpoint_steps, dry_step, train
from plad_ray.train.rollouts import Rollouts
from plad_ray.train.rows import check_room, first_rows, of_first_prompts, reference_table, rows_of
from plad_ray.train.sampler import Plan
from plad_ray.train.sharing import choose_layout
from plad_ray.train.world import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What is made before DeepSpeed starts."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    policy: Policy | None  # None: a model made from scratch
    rows: list[Row]
    objective: Objective
    frozen: FrozenModels
    layout: Layout
    note: str | None  # why ``auto`` had to take another layout than the shared one
    rows_in: int
    dropped: dict[str, int]


def work(job: Job, world: World) -> dict[str, Any]:
    """Train and, on rank 0, write files/. Returns {rows_in, rows_out, dropped, metrics, note}, or {error},
    both texts for the user.

    Errors of input are agreed on by all workers first, so none waits for another that has stopped.
    """
    model, training = sections(job.config)
    parts: Parts | None = None
    error: PladError | None = None
    try:
        parts = prepare(job, world, model, training)
    except PladError as raised:
        logger.error("%s", raised)
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


def objective_of(training: Sft | Distill) -> Objective:
    """What a training section minimises."""
    if isinstance(training, Sft):
        return build("sft", {})
    return training.objective.built()


def prepare(job: Job, world: World, model: Model, training: Sft | Distill) -> Parts:
    """Read the table, load or make model and tokenizer, tokenise, load frozen models."""
    seed = job.config["seed"]
    objective = objective_of(training)
    references = objective.trains_on == "references"
    table = job.inputs["prompts" if references else "pairs"].table()
    asked, others = table, dict[str, int]()
    if isinstance(training, Distill) and training.prompts is not None:
        prompts = job.inputs["prompts"].table(["prompt_id", "split"])
        asked, others = of_first_prompts(table, prompts, training.prompts)
    kept, dropped = (
        reference_table(
            asked, "train" if isinstance(training, Sft) else "distill", training.limit, objective.reads_texts
        )
        if references
        else first_rows(asked, training.limit)
    )
    policy: Policy | None
    network: nn.Module
    tokenizer: PreTrainedTokenizerBase
    if model.scratch is not None and "base/0" not in job.inputs:
        policy = None
        network, tokenizer = make(model.scratch, train_texts(table), seed)
    else:
        policy = resolve(model, *job.numbered("base"))
        tokenizer = load_tokenizer(policy)
        network = _network(policy, model, training, seed)
    if job.runtime.train.gradient_checkpointing:
        causal_model(network).gradient_checkpointing_enable({"use_reentrant": False})
    seq2seq = is_seq2seq(causal_model(network).config)
    frozen = load_frozen(network, policy, _frozen_policies(job, tokenizer, objective, seq2seq))
    layout, note = choose_layout(job.runtime.train.layout, network, frozen.own)
    rows = rows_of(kept, tokenizer, model, objective, seq2seq)
    if objective.rollout is not None and not seq2seq:
        check_room(rows, job.config["max_new_tokens"], model)
    return Parts(network, tokenizer, policy, rows, objective, frozen, layout, note, table.num_rows, others | dropped)


def _frozen_policies(
    job: Job, tokenizer: PreTrainedTokenizerBase, objective: Objective, seq2seq: bool
) -> dict[str, tuple[Policy, Model]]:
    """The frozen models of the job's config. Raises PladError for one that reads other tokens than the student, or reads
    prompts elsewhere."""
    found = {}
    for name, section in job.config.get("frozen", {}).items():
        frozen = Model.model_validate(section)
        policy = resolve(frozen, *job.numbered(f"frozen/{name}"))
        check_same_tokens(tokenizer, load_tokenizer(policy), name)
        check_same_sequences(seq2seq, is_seq2seq(load_config(policy)), name)
        found[name] = (policy, frozen)
    return found


def _network(policy: Policy, model: Model, training: Sft | Distill, seed: int) -> nn.Module:
    if training.method == "full" and policy.adapter is not None:
        section = "sft" if isinstance(training, Sft) else "distill"
        raise PladError(
            f"{section}.method full cannot continue an adapter: merge it into its base first (plad merge), or use lora"
        )
    base = load_base(policy, model.dtype, model.load_in_4bit)
    return base if training.method == "full" else with_lora(base, policy, training.lora, seed)


def _train(job: Job, world: World, model: Model, training: Sft | Distill, parts: Parts) -> dict[str, Any]:
    module = ResponseValues(parts.model, parts.objective, parts.frozen).to(world.device)
    models = [causal_model(each) for each in (parts.model, *parts.frozen.own.values())]
    with fused(models) if job.runtime.train.fused_kernels else nullcontext():
        run = _start(job, world, model, training, parts, module)
        try:
            _steps(job, world, run)
            _publish(job, world, model, parts, run)
        finally:
            deepspeed.end_engine(run.engine)
    return {
        "rows_in": parts.rows_in,
        "rows_out": len(parts.rows),
        "dropped": parts.dropped,
        "metrics": _summary(run, training) | {"layout": run.layout.name},
        "note": parts.note,
    }


def _steps(job: Job, world: World, run: Run) -> None:
    """All steps left, with checkpoints, progress and trackers."""
    told = [0.0]

    def progress(done: int, total: int, **notes: float) -> None:
        if time.monotonic() - told[0] > 0.5 or done == total:
            told[0] = time.monotonic()
            job.progress(done, total, "steps", **notes)

    def at_checkpoint(step: int) -> None:
        with tempfile.TemporaryDirectory(prefix="plad-checkpoint-") as folder:
            if world.rank == 0:
                logger.info("checkpoint after step %d of %d", step, run.plan.steps)
            checkpoint.save(run.engine, Path(folder), {"of": job.out.name, "step": step, "lines": run.lines})
            world.report({**run.lines[-1], "step": step}, Path(folder) if world.rank == 0 else None)

    every = checkpoint_steps(job.runtime.train.checkpoint_every, run.objective)
    subject = Subject(job.out.name, job.out.store.root, job.stage, job.config, run.start)
    with trackers(job.runtime.track if world.rank == 0 else Track.off(), subject, run.lines) as track:
        train(run, at_checkpoint, every, progress, track, world.preempted)


def _start(job: Job, world: World, model: Model, training: Training, parts: Parts, module: ResponseValues) -> Run:
    """Engine up, state restored."""
    runtime = job.runtime.train
    module.train()
    vocabulary = causal_model(parts.model).config.get_text_config().vocab_size
    pad = pad_id(parts.tokenizer)
    rows = with_frozen_logps(
        module, parts.rows, parts.objective.logps_of, parts.layout, pad, vocabulary, runtime.micro_batch, world
    )
    snapshot = checkpoint.load(world.resume) if world.resume is not None else None
    if snapshot is not None:
        checkpoint.restore_weights(module, snapshot)
    plan = Plan(len(rows), training.batch_size, training.epochs, job.config["seed"])
    micros = -(-min(training.batch_size, plan.total) // (world.workers * runtime.micro_batch))
    settings = deepspeed.engine_config(training, runtime, model.dtype, world.workers, micros)
    run = Run(
        engine=deepspeed.start_engine(module, training, settings),
        objective=parts.objective,
        rows=rows,
        plan=plan,
        training=training,
        micro_batch=runtime.micro_batch,
        rank=world.rank,
        workers=world.workers,
        vocabulary=vocabulary,
        pad=pad,
        layout=parts.layout,
        rollouts=_rollouts(job, world, model, parts, module),
    )
    if snapshot is not None:
        checkpoint.restore_moments(run.engine, snapshot, lambda: dry_step(run))
        run.resume(snapshot.meta["step"], snapshot.meta["lines"])
    return run


def _rollouts(job: Job, world: World, model: Model, parts: Parts, module: ResponseValues) -> Rollouts | None:
    settings = parts.objective.rollout
    if settings is None:
        return None
    return Rollouts(
        settings,
        module,
        eos_ids(parts.tokenizer, model),
        job.config["max_new_tokens"],
        job.config["seed"],
        in_step=job.runtime.train.zero_stage == 3 and world.workers > 1,
    )


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
