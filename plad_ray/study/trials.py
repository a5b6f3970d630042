"""The trials of a sweep under Ray Tune: each is one training stage and trains only; a stopped one gives its workers back.

What is finished is an artifact, so a trial that is asked for again costs nothing. Tune's own state lies in the stage's
``work/`` folder, from which an interrupted sweep goes on: what a scheduler has stopped stays stopped.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray import tune

from plad_ray import cluster, logs
from plad_ray.artifacts import Store
from plad_ray.config import Runtime
from plad_ray.config.sweep import Tuning
from plad_ray.errors import PladError
from plad_ray.stages import Job, Outcome, Stage, job_of, run_stage

STEP = "step"
#: of a trial's driver, which waits for its workers
DRIVER_CPUS = 0.01
WATCH_SECONDS = 2.0


def stage(candidates: Mapping[str, dict[str, Any]], trained: Mapping[str, Stage], tuning: Tuning) -> Stage:
    """The stage that tries ``candidates`` (changes by name) by running the stages ``trained``, whose inputs are its."""
    inputs = {f"{name}/{key}": parent for name, s in trained.items() for key, parent in s.inputs.items()}
    config = {
        "candidates": dict(candidates),
        "artifacts": {name: s.artifact_name for name, s in trained.items()},
        "tuning": tuning.model_dump(mode="json"),
    }
    return Stage("sweep", partial(run, trained=dict(trained)), config, inputs)


def run(job: Job, trained: Mapping[str, Stage]) -> Outcome:
    """Stage: ``files/trials.json``: by candidate ``status`` (finished, stopped, not tried) and its last ``metrics``."""
    tuning = Tuning.model_validate(job.config["tuning"])
    space = Space(job.config["candidates"])
    with _watched(job, trained):
        results = _tuner(job, trained, tuning, space).fit()
    if results.errors:
        raise PladError(f"{job.stage}: {len(results.errors)} trials failed, the first: {_last_line(results.errors[0])}")
    ended = [results[i] for i in range(len(results))]
    tried = {space.name((result.config or {})["trial"]): result.metrics or {} for result in ended}
    found = {}
    for name, planned in trained.items():
        finished = planned.artifact(job.out.store).finished
        status = "finished" if finished else "stopped" if name in tried else "not tried"
        metrics = planned.artifact(job.out.store).manifest["metrics"] if finished else tried.get(name, {})
        found[name] = {"status": status, "metrics": {k: v for k, v in metrics.items() if isinstance(v, int | float)}}
    job.out.store.write_json(job.out.file("files/trials.json"), found)
    counts = Counter(str(trial["status"]) for trial in found.values())
    left = {status.replace(" ", "_"): n for status, n in counts.items() if status != "finished"}
    return Outcome(len(found), counts["finished"], left)


class Space:
    """The candidates as Tune sees them: one choice a key, so that a search learns from each."""

    def __init__(self, candidates: Mapping[str, dict[str, Any]]):
        self.values: dict[str, list[Any]] = {}
        for changes in candidates.values():
            for key, value in changes.items():
                known = self.values.setdefault(key, [])
                if value not in known:
                    known.append(value)
        self.names = {self._places(changes): name for name, changes in candidates.items()}

    def _places(self, changes: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(self.values[key].index(changes[key]) for key in self.values)

    def name(self, chosen: Mapping[str, int]) -> str:
        """The candidate whose values have these places."""
        return self.names[tuple(chosen[key] for key in self.values)]

    def of_tune(self, pick: Callable[[list[int]], Any]) -> dict[str, Any]:
        return {"trial": {key: pick(list(range(len(values)))) for key, values in self.values.items()}}


def _tuner(job: Job, trained: Mapping[str, Stage], tuning: Tuning, space: Space) -> tune.Tuner:
    """A new one, or the one of an interrupted sweep."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths are relative to where the sweep was started
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # it draws tables even where ``verbose`` is 0
    store = job.out.store
    function = partial(_trial, trained=dict(trained), root=store.root, runtime=job.runtime, space=space, run=job.run)
    trainable = tune.with_resources(function, {"CPU": DRIVER_CPUS})
    where = store.path(job.out.file("work/tune"))
    if tune.Tuner.can_restore(f"{where}/trials", storage_filesystem=store.fs):
        return tune.Tuner.restore(
            f"{where}/trials", trainable, resume_errored=True, storage_filesystem=store.fs, param_space=None
        )
    grid = tuning.algorithm != "optuna"
    return tune.Tuner(
        trainable,
        param_space=space.of_tune(tune.grid_search if grid else tune.choice),
        tune_config=tune.TuneConfig(
            metric=tuning.metric,
            mode=tuning.mode,
            scheduler=_scheduler(tuning),
            search_alg=None if grid else _optuna(),
            num_samples=1 if grid else tuning.trials or len(space.names),
            max_concurrent_trials=concurrency(next(iter(trained.values())), cluster.capacity()),
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=where,
            storage_filesystem=store.fs,
            failure_config=tune.FailureConfig(max_failures=1),  # of the driver; workers have Train's own
            verbose=0,
        ),
    )


def concurrency(stage: Stage, capacity: tuple[float, float]) -> int:
    """Trials that fit on the cluster at once, at least one: Tune does not see what Train's workers hold."""
    fits = [have / need for have, need in zip(capacity, (stage.cpus, stage.gpus), strict=True) if need]
    return max(1, math.floor(min(fits))) if fits else 1


def _scheduler(tuning: Tuning) -> Any:
    if not tuning.stops_early:
        return None
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr=STEP, max_t=10**9, grace_period=tuning.grace_steps, reduction_factor=tuning.reduction_factor
    )


def _optuna() -> Any:
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(seed=0)


def _trial(
    config: dict[str, Any], trained: Mapping[str, Stage], root: str, runtime: Runtime, space: Space, run: str
) -> None:
    """One trial, in a process of its own."""
    from ray.tune.integration.ray_train import TuneReportCallback

    from plad_ray.train.run import run as train

    _name_the_cluster()
    store = Store(root)
    planned = trained[space.name(config["trial"])]
    if not planned.artifact(store).finished:
        reporting = replace(planned, run=partial(train, callbacks=[TuneReportCallback()]))
        job = job_of(reporting, store, runtime, run=run)
        logs.begin(job.source)
        run_stage(reporting, job, say=lambda _: None)
    metrics = planned.artifact(store).manifest["metrics"]
    tune.report({STEP: metrics["steps"], **{k: v for k, v in metrics.items() if isinstance(v, int | float)}})


def _name_the_cluster() -> None:
    """Tells Ray Train's processes which Ray is theirs: what frees a stopped trial's workers asks the State API, which
    without RAY_ADDRESS looks for a Ray on the machine and gives up where it finds two."""
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


@contextmanager
def _watched(job: Job, trained: Mapping[str, Stage]) -> Iterator[None]:
    """Tells the board how many trials have finished. A callback of Tune's would be pickled into its state."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            done = sum(stage.artifact(job.out.store).finished for stage in trained.values())
            job.progress(done, len(trained), "trials")

    thread = threading.Thread(target=watch, daemon=True, name="trials")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _last_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
