"""Run jobs/demo.yaml on several seeds and pool them: ``python -m jobs.demo_seeds 0 1 2 3 4 [a.b=c …]``.

Beside what the demo compares there is a control, ``self``, whose chosen text is the student's own greedy output: what of a
gain is no more than sharpening. All test prompts are read.

Finished seeds are reused, an interrupted one resumes. Writes the table that the README shows to
``<store>/demo-seeds.md`` and prints it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from plad_ray.artifacts import Store
from plad_ray.config import load
from plad_ray.evaluate.pool import pool, render
from plad_ray.pipeline import plan

EXPERIMENT = Path(__file__).parent / "demo.yaml"


FULL = [
    "evaluate.limit=null",
    "student.draw.temperatures=[1.0, 0.0]",
    "compare.self={pairs: {chosen: {policy: student, temperature: 0.0}}}",
]


def main(arguments: list[str]) -> None:
    overrides = [*FULL, *(a for a in arguments if "=" in a)]
    seeds = [int(a) for a in arguments if "=" not in a]
    for seed in seeds:
        command = [sys.executable, "-m", "plad_ray", "run", str(EXPERIMENT), *_of_seed(seed), *overrides]
        print(f"seed {seed}: {' '.join(command[3:])}", flush=True)
        subprocess.run(command, check=True)
    table = render(pool([_metrics(seed, overrides) for seed in seeds]), [f"seed {seed}" for seed in seeds])
    store = Store(load(EXPERIMENT, overrides).runtime.store)
    store.write_bytes("demo-seeds.md", table.encode() + b"\n")
    print(f"\n{table}\n\nwritten to {store.path('demo-seeds.md')}")


def _of_seed(seed: int) -> list[str]:
    return [f"seed={seed}", f"name=demo-seed-{seed}"]


def _metrics(seed: int, overrides: list[str]) -> Path:
    experiment = load(EXPERIMENT, [*_of_seed(seed), *overrides])
    evaluation = plan(experiment).stages["evaluate"].artifact(Store(experiment.runtime.store))
    return evaluation.local_folder() / "metrics.json"


if __name__ == "__main__":
    main(sys.argv[1:])
