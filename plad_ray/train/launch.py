"""Ray Train: start the workers, hand them checkpoints, bring their errors back readable."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import TrainingFailedError

from plad_ray import logs
from plad_ray.artifacts import Artifact
from plad_ray.stages import Job
from plad_ray.train import checkpoint

logger = logging.getLogger("plad_ray")
#: What a training that was one of several has given, in its artifact's ``work/``: a new start does not do it again.
RESULT = "work/result.json"


def launch(jobs: list[Job], callbacks: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Run ``worker.work`` on ``runtime.train.workers`` workers, job after job, and return what rank 0 has of each.

    The run's name is the first artifact's, its storage that artifact's ``work/`` folder: the same stages started again
    find their last checkpoint there by themselves. Where the workers fail for good, what was finished before is returned,
    and the cause as ``error`` for the others.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # nodes may have to come up first
    forget_torn_record(jobs[0].out)
    try:
        return _fit(jobs, callbacks)
    except (TrainingFailedError, ray.exceptions.RayError) as error:
        failed = {"error": f"training failed on {jobs[0].runtime.train.workers} workers: {_cause(error)}"}
        return [_kept(job) or failed for job in jobs]


def record_of(out: Artifact) -> str:
    """Ray Train's list of a run's checkpoints."""
    return out.file(f"work/train/{out.name}/checkpoint_manager_snapshot.json")


def forget_torn_record(out: Artifact) -> None:
    """Delete the list of checkpoints that a kill has cut off: Ray Train writes it in place, and would refuse it for ever."""
    if not out.store.exists(record_of(out)):
        return
    try:
        out.store.read_json(record_of(out))
    except ValueError:
        logger.warning("%s: the list of its checkpoints was cut off by a kill; training starts again", out.name)
        out.store.delete(record_of(out))


def _fit(jobs: list[Job], callbacks: Sequence[Any]) -> list[dict[str, Any]]:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    first = jobs[0]
    runtime = first.runtime.train
    resources = {"CPU": float(runtime.cpus_per_worker)}
    if runtime.gpus_per_worker:
        resources["GPU"] = float(runtime.gpus_per_worker)
    trainer = TorchTrainer(
        _worker,  # type: ignore[arg-type]
        train_loop_config={"jobs": jobs},
        torch_config=TorchConfig(backend="nccl" if runtime.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=runtime.workers,
            use_gpu=runtime.gpus_per_worker > 0,
            resources_per_worker=resources,
            accelerator_type=runtime.accelerator_type,
        ),
        run_config=RunConfig(
            name=first.out.name,
            storage_path=first.out.store.path(first.out.file("work/train")),
            storage_filesystem=first.out.store.fs,
            failure_config=FailureConfig(max_failures=runtime.max_failures * len(jobs)),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),
        ),
    )
    result: Any = trainer.fit()
    results: list[dict[str, Any]] = result.return_value
    return results


def _worker(config: dict[str, Any]) -> list[dict[str, Any]]:
    from ray import train

    from plad_ray.train.allocator import keep_large_buffers_apart

    jobs: list[Job] = config["jobs"]
    keep_large_buffers_apart()
    torch.set_num_threads(max(1, int(jobs[0].runtime.train.cpus_per_worker)))
    last = train.get_checkpoint()
    if last is None:
        return _in_turn(jobs, None)
    with last.as_directory() as folder:
        return _in_turn(jobs, Path(folder))


def _in_turn(jobs: list[Job], resume: Path | None) -> list[dict[str, Any]]:
    """Each job's result; with several, what is finished is kept for another start, and the memory of each given back."""
    if len(jobs) == 1:
        return [_one(jobs[0], resume)]
    interrupted = checkpoint.meta(resume)["of"] if resume is not None else None
    results = []
    for job in jobs:
        result = _kept(job)
        if result is None:
            began = time.monotonic()
            result = _one(job, resume if job.out.name == interrupted else None)
            result["seconds"] = time.monotonic() - began
            _keep(job, result)
            gc.collect()
        results.append(result)
    return results


def _one(job: Job, resume: Path | None) -> dict[str, Any]:
    from ray import train
    from ray.train.torch import get_device

    from plad_ray.train.worker import work
    from plad_ray.train.world import World

    logs.begin(job.source)
    context, device = train.get_context(), get_device()
    assert isinstance(device, torch.device)

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder) if folder is not None else None)

    def preempted() -> bool:
        return train.get_preemption_info() is not None

    return work(job, World(context.get_world_rank(), context.get_world_size(), device, resume, report, preempted))


def _kept(job: Job) -> dict[str, Any] | None:
    store, name = job.out.store, job.out.file(RESULT)
    return store.read_json(name) if store.exists(name) else None


def _keep(job: Job, result: dict[str, Any]) -> None:
    from ray import train

    if "error" not in result and train.get_context().get_world_rank() == 0:
        job.out.store.write_json(job.out.file(RESULT), result)


def _cause(error: BaseException) -> str:
    """The innermost message: Ray wraps what a worker raised several times."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    cause: BaseException = error
    while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause is not None:
        cause = cause.cause
    if isinstance(cause, WorkerGroupError) and cause.worker_failures:
        rank, failure = next(iter(cause.worker_failures.items()))
        lines = str(failure).strip().splitlines() or [type(failure).__name__]
        return f"worker {rank}: {lines[-1]}"
    return (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
