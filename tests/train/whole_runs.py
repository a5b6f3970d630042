"""Stages of a planned experiment run in this process: what Ray would spread over workers and engines, one after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import torch

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment
from plad_ray.generate import parts, requests
from plad_ray.generate.fake_engine import FakeEngine
from plad_ray.generate.pools import EnginePool, build_pools
from plad_ray.generate.responses import part_row
from plad_ray.generate.tasks import REQUEST
from plad_ray.generate.transformers_engine import TransformersEngine
from plad_ray.pairs import build
from plad_ray.stages import Job, Outcome, Stage, closure, run_stage
from plad_ray.train.worker import work
from plad_ray.train.world import World


def run(exp: Experiment, last: Stage) -> dict[str, Artifact]:
    """Run ``last`` and what it needs; every artifact by its stage's name."""
    store, made = Store(exp.runtime.store), {}
    for stage in closure([last]):
        inputs = {key: parent.artifact(store) for key, parent in stage.inputs.items()}
        job = Job(stage.name, stage.config, inputs, stage.artifact(store), exp.runtime)
        here = Stage(stage.name, _function(stage), stage.config, stage.inputs, stage.identity, stage.version)
        run_stage(here, job, say=lambda _: None)
        made[stage.name] = job.out
    return made


def _function(stage: Stage) -> Any:
    if "policies" in stage.config:
        return generate
    if "training" in stage.config:
        return train
    return build.run if stage.name.startswith("pairs") else stage.run


def generate(job: Job) -> Outcome:
    total = Counter[str]()
    for pool in build_pools(job):
        draws = {name: job.config["policies"][name]["draws"] for name in pool.policies}
        asked = requests.encoded(requests.pool_requests(job.inputs["prompts"], pool, draws, job.config["seed"]), pool)
        rows = list(parts.remaining(asked, parts.Numbers(), total))
        answers = _engine(pool)(pa.Table.from_pylist(rows, schema=REQUEST))
        by_policy = dict.fromkeys(pool.policies, pool)
        parts.write_part(job.out, [part_row(by_policy, answer) for answer in answers.to_pylist()])
    count, _, _ = parts.publish(job.out, total["total"])
    return Outcome(total["total"], count)


def _engine(pool: EnginePool) -> Callable[[pa.Table], pa.Table]:
    if pool.engine == "fake":
        return FakeEngine({name: pool.eos(name)[0] for name in pool.policies}, pool.generate.max_tokens, {})
    return TransformersEngine(pool)


def train(job: Job) -> Outcome:
    result = work(job, World(0, 1, torch.device("cpu"), None, lambda metrics, folder: None))
    assert "error" not in result, result["error"]
    return Outcome(result["rows_in"], result["rows_out"], result["dropped"], result["metrics"])
