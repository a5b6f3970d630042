"""``python -m benchmarks``: all tables, as Markdown. Needs ``trl`` beside the package."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from benchmarks import memory, ours, train_step
from benchmarks.shape import Shape
from plad_ray.train.allocator import keep_large_buffers_apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="steps of each side; the first is not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["cpo", "dpo", "dpo-precomputed", "candidates", "memory"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_large_buffers_apart()
    shape = Shape()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}, {given.threads} threads, {given.steps} steps a side")
    print(f"torch {torch.__version__}, trl {version('trl')}; {shape}\n", flush=True)
    measures = {
        "cpo": lambda: train_step.against_cpo(shape, given.steps),
        "dpo-precomputed": lambda: train_step.against_dpo(shape, given.steps, precompute=True),
        "dpo": lambda: train_step.against_dpo(shape, given.steps, precompute=False),
        "candidates": lambda: train_step.four_candidates(shape, given.steps),
    }
    if given.only != "memory":
        ours.alone()
        print(train_step.HEADER)
        for name, measure in measures.items():
            if given.only in (None, name):
                print("\n".join(map(str, measure())), flush=True)
        print()
    if given.only in (None, "memory"):
        print(memory.table())


def machine() -> str:
    """Processor, cores, and how busy others keep them."""
    with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - a device file
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = os.getloadavg()[0]
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores, load {load:.1f} at the start"


if __name__ == "__main__":
    main()
