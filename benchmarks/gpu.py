"""``python -m benchmarks.gpu``: bf16 on one GPU. A Llama of 1.5 billion parameters from random weights against TRL's
trainers on the same pairs, layouts and attention kernels against fp32, and ``plad plan``'s memory against what was held."""

from __future__ import annotations

import argparse
import gc
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks import limit, ours, trl_side
from benchmarks.clock import Time, middle, timed
from benchmarks.shape import BILLION, Shape, lora_model
from benchmarks.train_step import objective
from plad_ray.config import Lora, TrainRuntime
from plad_ray.objectives import Objective, build
from plad_ray.planning import memory, shapes
from plad_ray.train import deepspeed, flex
from plad_ray.train.forward import causal_model
from plad_ray.train.kernels import fused
from plad_ray.train.layout import CONCATENATED, Layout, Row
from plad_ray.train.logprobs import ResponseValues, chunk_count
from plad_ray.train.loop import one_step
from plad_ray.train.shared import SHARED

GIB = 2**30
STEPS = 6
NEVER = 10**9


@contextmanager
def attention(name: str) -> Iterator[None]:
    """``dense`` masks for SDPA, or ``flex``."""
    own = flex.SHORTEST
    flex.SHORTEST = {"dense": NEVER, "flex": 0}[name]
    try:
        yield
    finally:
        flex.SHORTEST = own


class Ours:
    """Our training: ``step()`` does one step, and its seconds and bytes above those held between steps are kept."""

    def __init__(
        self, shape: Shape, layout: Layout = SHARED, loss: str = "simpo", kernel: str = "dense", fuse: bool = False
    ):
        self.kernel, self.fuse = kernel, fuse
        self.run = ours.run_of(shape, objective(loss), layout)
        self.watched = Watched()

    @property
    def model(self) -> PreTrainedModel:
        return causal_model(self.run.engine.module.model)

    def step(self) -> None:
        with attention(self.kernel), fused([self.model]) if self.fuse else nullcontext():
            held = begin()
            self.watched.times.append(timed(lambda: one_step(self.run, len(self.watched.times), 0.0)))
            self.watched.peaks.append(torch.cuda.max_memory_allocated() - held)

    def end(self) -> None:
        deepspeed.end_engine(self.run.engine)
        del self.run
        free()


def begin() -> int:
    """Bytes held now; the peak counts from here."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


@dataclass
class Watched:
    """Steps of one side."""

    times: list[Time] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def row(self, what: str, shape: Shape, peak_flops: float) -> str:
        seconds = middle(self.times).wall
        share = limit.flops(shape) / seconds / peak_flops
        gib = max(self.peaks[1:]) / GIB
        return f"| {what} | {seconds * 1e3:.0f} | {shape.pairs / seconds:.0f} | {share:.0%} | {gib:.1f} |"


HEADER = """| | ms a step | pairs/s | FLOP/s needed ÷ measured peak | GiB over the model's own |
|---|---|---|---|---|"""


def peak_flops() -> float:
    """FLOP/s of an 8192³ bf16 product on random data."""
    size = 8192
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2.0 * size**3 / middle([timed(lambda: a @ b) for _ in range(12)]).wall


def against_trl(peak: float, fuse: bool) -> None:
    """CPO (SimPO) and DPO with and without precomputed reference; ours between TRL's steps."""
    print(HEADER, flush=True)
    sides: dict[str, Callable[[Path, Callable[[], None]], trl_side.Clock]] = {
        "CPOTrainer(simpo)": lambda folder, between: trl_side.cpo(BILLION, STEPS, folder, between, fused=fuse),
        "DPOTrainer, reference precomputed": lambda folder, between: trl_side.dpo(
            BILLION, STEPS, folder, between, True, fuse
        ),
        "DPOTrainer": lambda folder, between: trl_side.dpo(BILLION, STEPS, folder, between, False, fuse),
    }
    for name, run in sides.items():
        mine, theirs = Ours(BILLION, loss="simpo" if "CPO" in name else "dpo", fuse=fuse), Watched()
        held = [0]

        def between(mine: Ours = mine, theirs: Watched = theirs, held: list[int] = held) -> None:
            theirs.peaks.append(torch.cuda.max_memory_allocated() - held[0])
            mine.step()
            held[0] = begin()

        with tempfile.TemporaryDirectory() as folder:
            theirs.times = run(Path(folder), between).times
        seconds = middle(theirs.times).wall / middle(mine.watched.times).wall
        less = max(mine.watched.peaks[1:]) / max(theirs.peaks[1:])
        print(theirs.row(f"TRL {name}", BILLION, peak))
        print(mine.watched.row(f"ours: {seconds:.2f}× as fast, {less:.2f} of the memory", BILLION, peak), flush=True)
        mine.end()


def ways(shape: Shape, peak: float, given: dict[str, dict[str, Any]], steps: int = STEPS) -> None:
    """Our step in each of the ways ``given``, interleaved."""
    sides = {name: Ours(shape, **options) for name, options in given.items()}
    for _ in range(steps):
        for side in sides.values():
            side.step()
    for name, side in sides.items():
        print(side.watched.row(name, shape, peak), flush=True)
        side.end()


def every_way(peak: float) -> None:
    print(HEADER, flush=True)
    for pairs in (16, 64):
        shape = replace(BILLION, pairs=pairs)
        given: dict[str, dict[str, Any]] = {
            "concatenated": {"layout": CONCATENATED},
            "shared": {},
            "shared, fused kernels": {"fuse": True},
        }
        ways(shape, peak, {f"{pairs} pairs, {name}": options for name, options in given.items()})
        products = limit.seconds(shape).wall
        print(f"| {pairs} pairs, matrix products alone | {products * 1e3:.0f} | | | |", flush=True)
    four = replace(BILLION, candidates=4)
    ways(four, peak, {"16 prompts × 4, concatenated": {"layout": CONCATENATED}, "16 prompts × 4, shared": {}})


def kernels_by_length(peak: float) -> None:
    print(HEADER, flush=True)
    for prompt in (1000, 4000, 8000):
        shape = replace(BILLION, pairs=16_000 // prompt, prompt=prompt, answer=256)
        both = {f"prompts of {prompt:,}, {kernel}": {"kernel": kernel} for kernel in ("dense", "flex")}
        ways(shape, peak, both, steps=5)


def ragged(count: int, vocabulary: int) -> list[Row]:
    draw = np.random.default_rng(1)

    def tokens(low: int, high: int) -> np.ndarray:
        return draw.integers(3, vocabulary, int(draw.integers(low, high))).astype(np.int32)

    def row() -> Row:
        candidates = tuple(tokens(10, 60) for _ in range(int(draw.integers(2, 5))))
        return Row(tokens(50, 500), candidates, tuple(-float(k) for k in range(len(candidates))))

    return [row() for _ in range(count)]


def values_and_gradient(module: ResponseValues, rows: list[Row], layout: Layout) -> tuple[Tensor, Tensor]:
    """Response log-probs [N], and the gradient of a margin loss with respect to the adapter, both fp32."""
    device = torch.device(BILLION.device)
    chunks = chunk_count(sum(row.positions for row in rows), BILLION.vocabulary, device)
    batch = layout.collate(rows, 0, chunks).to(device)
    module.zero_grad()
    logp_BKT = module(batch)["logp"]
    loss = build("plad_rank", {"logp_reduction": "mean", "margin": 1.0}).loss(
        {"logp": logp_BKT}, batch.mask_BKT, batch.scores_BK
    )
    torch.stack(list(loss.sums.values())).sum().backward()
    gradient = torch.cat([p.grad.flatten().float() for p in module.parameters() if p.grad is not None])
    return logp_BKT.detach().float()[batch.mask_BKT.bool()], gradient


WAYS = (
    ("concatenated", CONCATENATED, "dense"),
    ("shared, dense masks", SHARED, "dense"),
    ("shared, FlexAttention", SHARED, "flex"),
)


def equality() -> None:
    """Every layout and kernel against the plain fp32 forward."""
    print("| | log-probs: mean, most | gradient, relative |\n|---|---|---|", flush=True)
    model: nn.Module = lora_model(replace(BILLION, dtype="float32"))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.02)
    rows = ragged(12, BILLION.vocabulary)
    module = ResponseValues(model, Objective()).train()
    truth, slope = values_and_gradient(module, rows, CONCATENATED)

    def compare(name: str, layout: Layout, kernel: str = "dense") -> None:
        with attention(kernel):
            logps, gradient = values_and_gradient(module, rows, layout)
        far = (logps - truth).abs()
        off = float((gradient - slope).norm() / slope.norm())
        print(f"| {name} | {far.mean():.1e}, {far.max():.1e} | {off:.1e} |", flush=True)

    for dtype in (torch.float32, torch.bfloat16):
        module = module.to(dtype)
        for name, layout, kernel in WAYS:
            compare(f"{str(dtype)[6:]}, {name}", layout, kernel)
    with fused([causal_model(model)]):
        compare("bfloat16, shared, fused kernels", SHARED)


def predicted_memory() -> None:
    """``plad plan``'s bytes for a step against the allocator's, with and without gradient checkpointing."""
    print("| pairs of 350 + 30 + 30 | checkpointing | predicted GiB | allocated GiB | predicted ÷ allocated |")
    print("|---|---|---|---|---|", flush=True)
    for pairs, checkpointing in ((4, False), (16, False), (64, False), (64, True)):
        shape = replace(BILLION, pairs=pairs)
        runtime = TrainRuntime(micro_batch=pairs, gpus_per_worker=1, gradient_checkpointing=checkpointing)
        before = begin()
        side = Ours(shape)
        if checkpointing:
            side.model.gradient_checkpointing_enable({"use_reentrant": False})
        for _ in range(2):
            side.step()
        measured = max(side.watched.peaks) + torch.cuda.memory_allocated() - before
        planned = shapes.Shape(side.model.config, shape.dtype)
        wanted = Lora(r=shape.rank, dropout=0.0, target_modules=("q_proj", "v_proj"))
        batch = SHARED.collate(memory.like_rows(pairs, shape.prompt, shape.answer, 2), 0, 1)
        held = memory.training(planned, planned.lora(wanted), runtime, batch)
        predicted = held.total - held.process
        figures = f"{predicted / GIB:.1f} | {measured / GIB:.1f} | {predicted / measured:.2f}"
        print(f"| {pairs} | {'yes' if checkpointing else 'no'} | {figures} |", flush=True)
        side.end()


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


SECTIONS: dict[str, Callable[[float], None]] = {
    "Layouts and kernels against fp32": lambda peak: equality(),
    "Against TRL": lambda peak: against_trl(peak, False),
    "Our step, every way": every_way,
    "plad plan's memory": lambda peak: predicted_memory(),
    "Attention by length": kernels_by_length,
    "Against TRL, Liger's kernels on both sides": lambda peak: against_trl(peak, True),  # TRL leaves them in place
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(SECTIONS))
    given = parser.parse_args()
    ours.alone()
    peak = peak_flops()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"transformers {version('transformers')}, trl {version('trl')}, {BILLION}")
    print(f"8192³ bf16: {peak / 1e12:.0f} TFLOP/s\n", flush=True)
    failed = False
    for name, section in SECTIONS.items():
        if given.only in (None, name):
            print(f"## {name}\n", flush=True)
            try:
                section(peak)
            except Exception:  # noqa: BLE001 - the other sections' numbers are worth their minutes
                traceback.print_exc()
                failed = True
            free()
            print(flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
