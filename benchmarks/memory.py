"""Peak resident memory of two steps over the model's own, one process a figure: ``python -m benchmarks.memory``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import ours, trl_side
from benchmarks.resident import forget_peak, peak, resident
from benchmarks.shape import Shape, base_model, lora_model
from benchmarks.train_step import objective
from plad_ray.train.allocator import keep_large_buffers_apart
from plad_ray.train.shared import SHARED

REPEATS = 3
STEPS = 2


def own_peak(side: str, shape: Shape) -> float:
    """MiB that training added to this process: call it once."""
    if side == "trl":
        from trl.experimental.cpo import CPOTrainer  # noqa: F401 - its imports are not its training

        model = base_model(shape)
        before = resident()
        forget_peak()
        with tempfile.TemporaryDirectory() as folder:
            trl_side.cpo(shape, STEPS, Path(folder), lambda: None, model)
    else:
        import deepspeed  # noqa: F401 - likewise

        ours.alone()
        keep_large_buffers_apart()
        wrapped = lora_model(shape)
        before = resident()
        forget_peak()
        step = ours.stepper(shape, objective("simpo"), SHARED, wrapped)
        for _ in range(STEPS):
            step()
    return peak() - before


def measured(side: str, vocabulary: int) -> float:
    """``own_peak`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", side, str(vocabulary)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def table() -> str:
    """Medians of ``REPEATS`` interleaved runs."""
    sides = [("ours", 32_000), ("ours", 128_000), ("trl", 32_000)]
    runs = [[measured(*side) for side in sides] for _ in range(REPEATS)]
    small, large, theirs = (median(run[i] for run in runs) for i in range(len(sides)))
    return "\n".join(
        [
            "| peak memory over the model's own | MiB | ratio | target |",
            "|---|---|---|---|",
            f"| TRL CPOTrainer(simpo), vocabulary 32,000 | {theirs:.0f} | | |",
            f"| ours, vocabulary 32,000 | {small:.0f} | {small / theirs:.2f} of TRL's | ≤ 0.33 |",
            f"| ours, vocabulary 128,000 | {large:.0f} | {large / small - 1:+.0%} | < +10 % |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["ours", "trl"])
    parser.add_argument("vocabulary", type=int)
    given = parser.parse_args()
    print(own_peak(given.side, Shape(vocabulary=given.vocabulary)))


if __name__ == "__main__":
    main()
