"""Ray Train: start the workers, hand them checkpoints, bring their errors back readable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import TrainingFailedError

from plad_ray.errors import PladError
from plad_ray.stages import Job


def launch(job: Job, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Run ``worker.work`` on ``runtime.train.workers`` workers and return rank 0's result.

    The run's name is the artifact's, its storage the artifact's ``work/`` folder: the same stage started again finds
    its last checkpoint there by itself. Raises PladError naming the stage and the cause.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # nodes may have to come up first
    try:
        result = _fit(job, callbacks)
    except (TrainingFailedError, ray.exceptions.RayError) as error:
        workers = job.runtime.train.workers
        raise PladError(f"{job.stage}: training failed on {workers} workers: {_cause(error)}") from error
    if "error" in result:
        raise PladError(f"{job.stage}: {result['error']}")
    return result


def _fit(job: Job, callbacks: Sequence[Any]) -> dict[str, Any]:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    runtime = job.runtime.train
    resources = {"CPU": float(runtime.cpus_per_worker)}
    if runtime.gpus_per_worker:
        resources["GPU"] = float(runtime.gpus_per_worker)
    trainer = TorchTrainer(
        _worker,  # type: ignore[arg-type]
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if runtime.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=runtime.workers,
            use_gpu=runtime.gpus_per_worker > 0,
            resources_per_worker=resources,
            accelerator_type=runtime.accelerator_type,
        ),
        run_config=RunConfig(
            name=job.out.name,
            storage_path=job.out.store.path(job.out.file("work/train")),
            storage_filesystem=job.out.store.fs,
            failure_config=FailureConfig(max_failures=runtime.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),
        ),
    )
    result: Any = trainer.fit()
    return result.return_value


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    from ray import train
    from ray.train.torch import get_device

    from plad_ray.train.allocator import keep_large_buffers_apart
    from plad_ray.train.worker import work
    from plad_ray.train.world import World

    job: Job = config["job"]
    keep_large_buffers_apart()
    torch.set_num_threads(max(1, int(job.runtime.train.cpus_per_worker)))
    context = train.get_context()
    checkpoint = train.get_checkpoint()

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder) if folder is not None else None)

    def run(resume: Path | None) -> dict[str, Any]:
        device = get_device()
        assert isinstance(device, torch.device)
        return work(job, World(context.get_world_rank(), context.get_world_size(), device, resume, report))

    if checkpoint is None:
        return run(None)
    with checkpoint.as_directory() as folder:
        return run(Path(folder))


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
