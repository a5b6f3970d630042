"""One optimizer step of plad_ray as its training worker does it: deal, collate, forward, backward, AdamW under ZeRO-2."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from benchmarks.shape import Shape, lora_model, rows
from plad_ray.config import Training, TrainRuntime
from plad_ray.objectives import Objective
from plad_ray.train import deepspeed
from plad_ray.train.layout import Layout
from plad_ray.train.logprobs import ResponseValues, chunk_count
from plad_ray.train.loop import Run, one_step
from plad_ray.train.sampler import Plan

PAD = 0
#: More than anybody times.
STEPS = 10_000


def alone() -> None:
    """This process as a process group of its own, which DeepSpeed wants."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.distributed.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)


def stepper(shape: Shape, objective: Objective, layout: Layout, model: nn.Module | None = None) -> Callable[[], None]:
    """A function that does one training step."""
    run = run_of(shape, objective, layout, model)
    done = iter(range(STEPS))

    def step() -> None:
        one_step(run, next(done), 0.0)

    return step


def run_of(shape: Shape, objective: Objective, layout: Layout, model: nn.Module | None = None) -> Run:
    """A training before its first step. Log-probs of frozen models are given, as if precomputed."""
    training, runtime = Training(batch_size=shape.pairs, learning_rate=1e-4), TrainRuntime(micro_batch=shape.pairs)
    module: nn.Module = ResponseValues(model or lora_model(shape), objective)
    module.to(shape.device).train()
    config = deepspeed.engine_config(training, runtime, shape.dtype, 1, 1)
    os.environ["LOCAL_RANK"] = "0"
    engine = deepspeed.start_engine(module, training, config)
    del os.environ["LOCAL_RANK"]  # else TRL would take this process for one of many and wrap its model in DDP
    given = rows(shape, 4 * shape.pairs)
    blank = tuple(np.full(len(c), -10.0, np.float32) for c in given[0].candidates)
    known = {f"{name}_logp": blank for name in objective.logps_of}
    return Run(
        engine=engine,
        objective=objective,
        rows=[replace(row, known=known) for row in given],
        plan=Plan(len(given), shape.pairs, STEPS * shape.pairs / len(given), 0),
        training=training,
        micro_batch=shape.pairs,
        rank=0,
        workers=1,
        vocabulary=shape.vocabulary,
        pad=PAD,
        layout=layout,
    )


def full_logits_stepper(shape: Shape, objective: Objective, layout: Layout) -> Callable[[], None]:
    """The same step with logits of every position, as a plain trainer has them."""
    model = lora_model(shape).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    given = rows(shape, shape.pairs)

    def step() -> None:
        batch = layout.collate(given, PAD, chunk_count(0, shape.vocabulary, torch.device(shape.device)))
        logits_SLV = model(input_ids=batch.ids_SL, attention_mask=batch.attention_SL).logits
        logps_SL = logits_SLV[:, :-1].log_softmax(-1).gather(-1, batch.ids_SL[:, 1:, None]).squeeze(-1)
        values_N = nn.functional.pad(logps_SL, (0, 1)).flatten()[batch.source_N]
        flat = values_N.new_zeros(batch.mask_BKT.numel()).index_copy(0, batch.place_N, values_N)
        terms = objective.loss({"logp": flat.view_as(batch.mask_BKT)}, batch.mask_BKT, batch.scores_BK)
        counts = objective.counts(batch.mask_BKT)
        torch.stack([terms.sums[name] / counts[name] for name in counts]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
