"""Whether what an experiment starts at one time has room on the pods of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from plad_ray.config import Experiment


@dataclass
class Pod:
    group: str
    cpus: float
    gpus: float
    accelerator: str | None = None


@dataclass(frozen=True)
class Actor:
    """What one engine replica or training worker asks of one pod; ``key`` is the section that says so."""

    key: str
    cpus: float
    gpus: float
    accelerator: str | None = None


def unplaced(pods: list[Pod], exp: Experiment) -> Iterator[str]:
    """What does not fit, stage by stage: generation has its engines up together, training its workers."""
    for stage, actors in {"generation": engines(exp), "training": workers(exp)}.items():
        left = [Pod(p.group, p.cpus, p.gpus, p.accelerator) for p in pods]
        asked = sorted(actors, key=lambda a: (a.accelerator is None, -a.gpus, -a.cpus))
        missing = [actor for actor in asked if not _place(actor, left)]
        for actor in dict.fromkeys(missing):
            kind = f" {actor.accelerator}" if actor.accelerator else ""
            yield (
                f"{stage}: {missing.count(actor)} of {actors.count(actor)} × ({actor.gpus:g}{kind} GPUs, {actor.cpus:g} "
                f"CPUs) of {actor.key} have no place on the groups' pods; raise replicas, or lower {actor.key}"
            )


def engines(exp: Experiment) -> list[Actor]:
    found: list[Actor] = []
    for name in ("teacher", "student"):
        if getattr(exp, name) is not None:
            pool = getattr(exp.runtime, name)
            found += [Actor(f"runtime.{name}", pool.cpus, pool.gpus, pool.accelerator_type)] * pool.replicas
    return found


def workers(exp: Experiment) -> list[Actor]:
    train = exp.runtime.train
    actor = Actor("runtime.train", train.cpus_per_worker, train.gpus_per_worker, train.accelerator_type)
    return [actor] * train.workers


def _place(actor: Actor, pods: list[Pod]) -> bool:
    """On the pod it leaves the fewest GPUs of; on one without GPUs where it needs none and there is a choice."""
    for pod in sorted(pods, key=lambda p: (p.gpus, p.cpus)):
        fits = pod.cpus >= actor.cpus and pod.gpus >= actor.gpus
        if fits and actor.accelerator in (None, pod.accelerator):
            pod.cpus -= actor.cpus
            pod.gpus -= actor.gpus
            return True
    return False
