"""Sweeps: candidates, what is drawn for them, the choice on dev; and a real one under Ray Tune, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import pytest
import yaml

from plad_ray.artifacts import Store
from plad_ray.config import load, parse
from plad_ray.errors import PladError
from plad_ray.pipeline import plan
from plad_ray.stages import Job, Outcome, Stage, job_of, run_stage
from plad_ray.study import trials
from tests.study.here import named, rows
from tests.study.test_compare import win

GRID = {"distill.objective.margin": [0.5, 2.0], "temperature": [0.7, 1.0]}


def one_after_another(job: Job, trained: dict[str, Stage], stopped: tuple[str, ...] = ()) -> Outcome:
    """``trials.run`` without Tune: trains every candidate but ``stopped`` in this process."""
    found = {}
    for name, stage in trained.items():
        if name not in stopped:
            run_stage(stage, job_of(stage, job.out.store, job.runtime), say=lambda _: None)
        found[name] = {"status": "stopped" if name in stopped else "finished", "metrics": {}}
    job.out.store.write_json(job.out.file("files/trials.json"), found)
    return Outcome(len(found), len(found) - len(stopped), {"stopped": len(stopped)} if stopped else {})


def test_the_best_on_dev_is_written_as_an_experiment(here, monkeypatch):
    monkeypatch.setattr(trials, "run", partial(one_after_another, stopped=("try3",)))
    compare = {"seqkd": {"distill": {"objective": {"name": "seqkd"}}}}
    exp = here.experiment(compare=compare, merge={"base_weight": 0.3})
    result, store, last = here.run("sweep", exp, grid=GRID)
    [scores] = named(last, store, "dev-scores")
    references = {r["prompt_id"]: r["score"] for r in rows(scores) if r["policy"] == "reference"}
    rates = {
        f"try{i}": fmean(win(r["score"], references[r["prompt_id"]]) for r in rows(scores) if r["policy"] == f"try{i}")
        for i in range(3)
    }
    [table] = result.tables
    assert {row[0]: row[-1] and pytest.approx(row[-1].mean) for row in table.rows} == {**rates, "try3": None}
    best = max(rates, key=lambda name: rates[name])
    assert table.rows[0][0] == best and best in result.summary[0]
    chosen = parse(yaml.safe_load(result.chosen["best.yaml"]))
    assert (chosen.name, set(chosen.compare)) == ("tiny-best", {"seqkd"})
    assert chosen.merge == exp.merge and chosen.runtime == exp.runtime
    margin, temperature = [(m, t) for m in (0.5, 2.0) for t in (0.7, 1.0)][int(best[-1])]
    assert chosen.distill.objective.built().margin == margin
    assert chosen.pairs.chosen.temperature == chosen.pairs.rejected.temperature == temperature
    assert temperature in chosen.teacher.draw.temperatures
    ran = Counter(stage.name for stage in here.ran)
    assert ran["responses"] == ran["dev-responses"] == 1, "each engine once"
    assert sum(n for name, n in ran.items() if name.startswith("pairs")) == 2, "a table a temperature"


def test_seeds_and_unknown_keys_are_refused(here):
    with pytest.raises(PladError, match=r"study\.seeds: a sweep looks at dev with one seed"):
        here.run("sweep", here.experiment(), seeds=[1])
    with pytest.raises(PladError, match=r"distill\.objectiv: unknown key; did you mean objective"):
        here.run("sweep", here.experiment(), grid={"distill.objectiv.margin": [1]})


def test_a_scorer_that_compares_with_references_is_refused(here):
    """It gives them no score to win against: found before anything runs, not after every trial."""
    with pytest.raises(PladError, match=r"study sweep counts wins over the references, and scorer rouge compares"):
        here.run("sweep", here.experiment(scorer={"name": "rouge"}))
    with pytest.raises(PladError, match=r"study\.search of compare counts wins"):
        here.run("compare", here.experiment(scorer={"name": "rouge"}), search={})
    with pytest.raises(PladError, match=r"distill\.select_on_dev counts wins over the references"):
        plan(here.experiment(scorer={"name": "rouge"}, distill={"select_on_dev": {"a": {"epochs": 2}}}))
    assert here.ran == []


def test_optuna_is_asked_for_before_anything_runs(here, monkeypatch):
    monkeypatch.setattr("plad_ray.study.sweep.find_spec", lambda name: None)
    with pytest.raises(PladError, match=r"algorithm optuna needs the optuna package"):
        here.run("sweep", here.experiment(), tuning={"algorithm": "optuna"})
    assert here.ran == []


def test_concurrency_follows_the_cluster():
    stage = Stage("s", lambda job: Outcome(), cpus=2, gpus=1)
    assert trials.concurrency(stage, (64, 8)) == 8
    assert trials.concurrency(stage, (6, 8)) == 3
    assert trials.concurrency(stage, (1, 0)) == 1


def test_the_space_names_every_candidate():
    candidates = {"a": {"x": 1, "y": [1]}, "b": {"x": 1, "y": [2]}, "c": {"x": 2, "y": [1]}, "d": {"x": 2, "y": [2]}}
    space = trials.Space(candidates)
    asked = space.of_tune(lambda places: places)["trial"]
    assert asked == {"x": [0, 1], "y": [0, 1]}
    assert {space.name({"x": i, "y": j}) for i in asked["x"] for j in asked["y"]} == set(candidates)


def study_file(here: Any, **settings: Any) -> Path:
    """For a run by the command: everything but the models' size is real."""
    exp = here.experiment(
        runtime={
            "store": str(here.folder / "runs"),
            "verify_engine": False,
            "train": {"zero_stage": 0, "checkpoint_every": 2},
        },
        distill={"learning_rate": 1e-2, "batch_size": 4, "epochs": 4, "lora": {"r": 4, "target_modules": "all-linear"}},
        scorer={"name": "rouge"},
    )
    raw = exp.model_dump(mode="json", exclude_defaults=True)
    raw["scorer"] = {"name": "tests.study.here:word_numbers"}
    raw["study"] = settings
    path = here.folder / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def start(study: str, file: Path, *overrides: str, module: str = "plad_ray") -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", module, "study", study, str(file), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):  # of the in-process training
        environment.pop(name, None)
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def kill_tree(process: subprocess.Popen[str]) -> None:
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in reversed(family):
        with suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)


def manifests(store: Store, prefix: str) -> dict[str, dict[str, Any]]:
    found = {}
    for folder in Path(store.root).glob(f"{prefix}-*/manifest.json"):
        found[folder.parent.name] = json.loads(folder.read_text())
    return found


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_a_killed_sweep_goes_on_without_repeating_what_is_finished(here):
    file, store = study_file(here, grid=GRID), Store(str(here.folder / "runs"))
    first = start("sweep", file)
    while not manifests(store, "distill-try*"):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.5)
    kill_tree(first)
    done = manifests(store, "distill-try*")
    texts = manifests(store, "responses")
    assert 1 <= len(done) < 4 and len(texts) == 1
    second = start("sweep", file)
    output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output
    after = manifests(store, "distill-try*")
    assert len(after) == 4 and {name: after[name] for name in done} == done, "finished trials are as they were"
    assert manifests(store, "responses") == texts and len(manifests(store, "dev-responses")) == 1
    [best] = (here.folder / "runs").glob("tiny/study-sweep/best.yaml")
    assert load(best).name == "tiny-best"


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("algorithm", ["asha", "optuna"])
def test_stopped_trials_give_their_workers_back(here, algorithm):
    """With room for one trial at a time, and a second Ray on the machine, which hides the first from who only looks."""
    asha = {"grace_steps": 2, "reduction_factor": 2, "metric": "loss", "mode": "min"}  # the margin's part differs
    more = {"asha": asha, "optuna": {"trials": 3}}[algorithm]
    file = study_file(here, grid=GRID, tuning={"algorithm": algorithm, **more})
    process = start("sweep", file, "runtime.local_cpus=2", module="tests.study.watched")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    groups, held = output.splitlines()[-1].split()
    assert int(groups) >= 3 and float(held) <= 5, (groups, held)
    [result] = manifests(Store(str(here.folder / "runs")), "sweep").values()
    assert result["rows"]["in"] == 4 and result["rows"]["out"] >= 1
    assert ("stopped" in result["rows"]["dropped"]) == (algorithm == "asha"), result["rows"]


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_by_its_command(here):
    """Ray, engines and Ray Train are real; the summary, the page and the result are where they are said to be."""
    process = start("compare", study_file(here, seeds=[0, 1]))
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output
    assert "distilled less each of the others" in output and "study compare" in output
    folder = here.folder / "runs/tiny/study-compare"
    assert {file.name for file in folder.iterdir()} == {"result.json", "study.html", "study.md", "win-rates.svg"}
    assert "## By seed" in (folder / "study.md").read_text() and str(folder / "study.md") in output
    again = start("compare", here.folder / "study.yaml")
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0 and "stages to run" not in output
