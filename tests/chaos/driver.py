"""The driver of one stage, in a process of its own so that it can be killed: ``python -m tests.chaos.driver FILE``."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from plad_ray.cluster import connect
from plad_ray.config import Runtime
from plad_ray.stages import Stage, run_stage

if __name__ == "__main__":
    function, job = pickle.loads(Path(sys.argv[1]).read_bytes())
    connect(Runtime())
    run_stage(Stage(job.stage, function, job.config), job)
