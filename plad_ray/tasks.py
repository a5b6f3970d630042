"""Models read outside of training, where a training worker would be: in Ray tasks, as the driver's machine may have no GPU.

A model is whole in each, so one that trains only in parts (ZeRO 3) has to fit on one worker here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch

from plad_ray import logs
from plad_ray.config import Runtime
from plad_ray.errors import PladError
from plad_ray.stages import Job

Found = TypeVar("Found")


def at_workers(job: Job, work: Callable[[Job, int], Found], count: int) -> list[Found]:
    """``work(job, i)`` for each i below ``count``, each in a task with what ``runtime.train`` gives a worker; one whose
    machine is lost runs again. Raises the PladError of the first that fails; the others end with this process."""
    train = job.runtime.train
    task: Any = ray.remote(max_calls=1)(_begun).options(  # a process that lives on would keep the GPU's memory
        name=job.title or job.stage,
        num_cpus=train.cpus_per_worker,
        num_gpus=train.gpus_per_worker,
        accelerator_type=train.accelerator_type,
    )
    try:
        return ray.get([task.remote(work, job, i) for i in range(count)])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PladError):
            raise PladError(str(error.cause)) from None
        raise  # nothing is cancelled: Ray 2.60 aborts the driver where a task fails while it is cancelled by force


def device_of(runtime: Runtime) -> torch.device:
    """Where a worker has its model."""
    return torch.device("cuda" if runtime.train.gpus_per_worker else "cpu")


def _begun(work: Callable[[Job, int], Found], job: Job, number: int) -> Found:
    logs.begin(job.source)
    torch.set_num_threads(max(1, int(job.runtime.train.cpus_per_worker)))
    return work(job, number)
