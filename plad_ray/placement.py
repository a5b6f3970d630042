"""Whether what an experiment has up at one time has room on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from plad_ray.config import Experiment, Runtime, Scorer
from plad_ray.stages import Stage

ROLES = ("teacher", "student")


@dataclass
class Node:
    """``group``: whose node it is, for messages; ``accelerator``: what Ray calls the kind of its GPUs."""

    group: str
    cpus: float
    gpus: float
    accelerator: str | None = None


@dataclass(frozen=True)
class Actor:
    """What one engine replica, scorer or training worker asks of one node; ``key`` is the section that says so."""

    key: str
    cpus: float
    gpus: float
    accelerator: str | None = None

    def __str__(self) -> str:
        kind = f" {self.accelerator}" if self.accelerator else ""
        gpus = f"{self.gpus:g}{kind} GPUs, " if self.gpus else ""
        return f"({gpus}{self.cpus:g} CPUs)"


@dataclass(frozen=True)
class Fit:
    """``placed`` of the ``wanted`` actors of one kind have room at the time of ``stage``; ``why`` the others have none."""

    stage: str
    actor: Actor
    wanted: int
    placed: int
    why: str

    @property
    def missing(self) -> int:
        return self.wanted - self.placed


def asked(
    exp: Experiment, roles: Iterable[str] = ROLES, trains: bool = True, scores: bool = True
) -> dict[str, list[Actor]]:
    """What is up together, by what it is for: the engines of ``roles``, those that share GPUs by turns, the scorers and the
    trainers."""
    present = [role for role in roles if getattr(exp, role) is not None]
    found = {}
    for turn in exp.runtime.turns(present):
        whose = f" ({' and '.join(turn)})" if len(turn) < len(present) else ""
        found[f"generation{whose}"] = [actor for role in turn for actor in _engines(exp, role)]
    if scores and exp.scorer is not None:
        found["scoring"] = scorers(exp.scorer, exp.runtime)
    return found | ({"training": _workers(exp)} if trains else {})


def asked_by(exp: Experiment, todo: list[Stage]) -> dict[str, list[Actor]]:
    """What the stages ``todo`` have up."""
    roles = {policy["role"] for stage in todo for policy in stage.config.get("policies", {}).values()}
    trains = any("training" in stage.config or stage.config.get("at_workers") for stage in todo)
    scores = any(isinstance(stage.config.get("scorer"), dict) for stage in todo)
    return asked(exp, [role for role in ROLES if role in roles], trains, scores)


def fits(nodes: list[Node], wanted: dict[str, list[Actor]]) -> Iterator[Fit]:
    """How much of ``wanted`` has room, the most particular actors first."""
    for stage, actors in wanted.items():
        left = [replace(node) for node in nodes]
        for actor in sorted(dict.fromkeys(actors), key=lambda a: (a.accelerator is None, -a.gpus, -a.cpus)):
            count = actors.count(actor)
            placed = sum(_place(actor, left) for _ in range(count))
            yield Fit(stage, actor, count, placed, "" if placed == count else _why(actor, nodes))


def _engines(exp: Experiment, role: str) -> list[Actor]:
    pool = getattr(exp.runtime, role)
    return [Actor(f"runtime.{role}", pool.cpus, pool.gpus, pool.accelerator_type)] * pool.replicas


def scorers(scorer: Scorer, runtime: Runtime) -> list[Actor]:
    """One keeps up where a rule scores; classifiers have a GPU each where the student's engines have some."""
    student = runtime.student
    if scorer.name == "classifier" and student.gpus > 0:
        return [Actor("runtime.student", 0.5, 1, student.accelerator_type)] * student.replicas
    return [Actor("scorer", 0.5, 0)]


def _workers(exp: Experiment) -> list[Actor]:
    train = exp.runtime.train
    actor = Actor("runtime.train", train.cpus_per_worker, train.gpus_per_worker, train.accelerator_type)
    return [actor] * train.workers


def _place(actor: Actor, nodes: list[Node]) -> bool:
    """On the node it leaves the fewest GPUs of; on one without GPUs where it needs none and there is a choice."""
    for node in sorted(nodes, key=lambda n: (n.gpus, n.cpus)):
        fits = node.cpus >= actor.cpus and node.gpus >= actor.gpus
        if fits and actor.accelerator in (None, node.accelerator):
            node.cpus -= actor.cpus
            node.gpus -= actor.gpus
            return True
    return False


def _why(actor: Actor, nodes: list[Node]) -> str:
    """What not even an empty cluster of these nodes has; else others take it."""
    kind = f" {actor.accelerator}" if actor.accelerator else ""
    of_kind = [node for node in nodes if actor.accelerator in (None, node.accelerator)]
    gpus = max((node.gpus for node in of_kind), default=0)
    if gpus < actor.gpus:
        return f"no node has more than {gpus:g}{kind} GPUs" if gpus else f"there is no{kind} GPU"
    if not any(node.gpus >= actor.gpus and node.cpus >= actor.cpus for node in of_kind):
        return f"no node{' with such GPUs' if actor.gpus else ''} has {actor.cpus:g} CPUs"
    return (
        f"there are {sum(node.gpus for node in of_kind):g}{kind} GPUs and {sum(n.cpus for n in of_kind):g} CPUs in all"
    )
