"""What is disturbed: small runs of the real stages, which can say how far they are and whether they ended as they should."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch
import yaml

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import load
from plad_ray.generate import parts
from plad_ray.generate import run as generation
from plad_ray.pipeline import plan
from plad_ray.stages import Job, job_of
from plad_ray.train import run as training
from plad_ray.train.launch import record_of
from tests.chaos import drivers
from tests.chaos.checks import check_rows, check_store, check_training
from tests.chaos.drivers import Driver
from tests.conftest import only_worker, save_tiny_model
from tests.generate.generate_jobs import draw, make_job, policy, prompt_rows, prompts_artifact
from tests.train import whole_runs
from tests.train.train_jobs import distill_job, session


class Scenario(Protocol):
    driver: Driver

    def progress(self) -> float:
        """The finished share, 0 to 1."""

    def check(self) -> None:
        """Raises AssertionError where the result is not that of an undisturbed run."""


class Generation:
    """Three fake engines of two roles; a block of 4 requests takes 0.3 s."""

    prompts = 40

    def __init__(self, store: Store, folder: Path, references: References):
        pool = {"batch_size": 4, "engine_kwargs": {"seconds": 0.3}}
        draws = [draw(temperatures=(0.0, 0.7))]
        policies = {role: policy(references.model, role, draws=draws) for role in ("teacher", "student")}
        inputs = {"prompts": prompts_artifact(store, prompt_rows(self.prompts))}
        self.job = make_job(store, policies, inputs, {"teacher": pool | {"replicas": 2}, "student": pool})
        self.driver = Driver(drivers.stage, generation.run, self.job)
        self.total = self.prompts * 4
        self.references = references

    def progress(self) -> float:
        out = self.job.out
        return 1.0 if out.finished else 4 * len(out.store.files(out.file(parts.FOLDER))) / self.total

    def check(self) -> None:
        check_rows(self.job.out, self.total)
        assert self.job.out.table().equals(self.references.responses(self.job)), "not the text of an undisturbed run"
        check_store(self.job.out.store)


class Training:
    """150 steps with dropout, a checkpoint after every tenth."""

    def __init__(self, store: Store, folder: Path, references: References, workers: int):
        self.job = training_job(store, references.model, workers)
        self.driver = Driver(drivers.stage, training.run, self.job)
        self.references = references

    def progress(self) -> float:
        return 1.0 if self.job.out.finished else steps(self.job.out) / 150

    def check(self) -> None:
        check_training(self.job.out, self.references.training(self.job.runtime.train.workers))
        check_store(self.job.out.store)


class Whole:
    """``plad run`` from prompts to report, with tiny models behind the transformers engine."""

    def __init__(self, store: Store, folder: Path, references: References):
        file = whole_experiment(store, folder, references.teacher, references.model)
        self.driver = Driver(drivers.plad, "run", str(file))
        self.exp, self.store, self.folder = load(file), store, folder
        self.stages = plan(self.exp).stages

    def progress(self) -> float:
        return sum(s.artifact(self.store).finished for s in self.stages.values()) / len(self.stages)

    def check(self) -> None:
        made = {name: stage.artifact(self.store) for name, stage in self.stages.items()}
        assert all(artifact.finished for artifact in made.values())
        splits = made["prompts"].table(["split"]).column("split").to_pylist()
        check_rows(made["responses"], 2 * (splits.count("distill") + splits.count("test")))
        check_rows(made["eval-responses"], splits.count("test"))
        undisturbed = train_alone(job_of(self.stages["distill"], self.store, self.exp.runtime), self.folder)
        check_training(made["distill"], undisturbed)
        check_store(self.store)


class Sweep:
    """``plad study sweep``: two trials of Ray Tune; what was finished at a kill is not made again."""

    def __init__(self, store: Store, folder: Path, references: References):
        file = whole_experiment(store, folder, references.teacher, references.model)
        raw = yaml.safe_load(file.read_text())
        raw["scorer"] = {"name": "tests.study.here:word_numbers"}
        raw["study"] = {"grid": {"distill.objective.margin": [0.5, 2.0]}}
        file.write_text(yaml.safe_dump(raw))
        self.driver, self.store = Driver(drivers.plad, "study", "sweep", str(file)), store
        self.finished: dict[str, bytes] = {}

    def progress(self) -> float:
        self.finished = self._manifests()  # the newest look before a kill
        return len(self.finished) / 10

    def check(self) -> None:
        made = self._manifests()
        assert {name: made[name] for name in self.finished} == self.finished, "a finished stage was made again"
        assert sum(name.startswith("distill-try") for name in made) == 2
        assert [name for name in made if name.startswith("sweep-")], "no sweep"
        check_store(self.store)

    def _manifests(self) -> dict[str, bytes]:
        names = [name for name in self.store.files("") if name.endswith("/manifest.json")]
        return {name: self.store.read_bytes(name) for name in names}


@dataclass(frozen=True)
class Kind:
    """``victims``: who may be killed beside the driver, by a pattern of its process's title. ``latest``: the share of the
    run until which there are some of each. ``after``: seconds that a kill may come later than a share is reached."""

    make: Any
    share: int
    victims: dict[str, str]
    latest: float
    after: float


ENGINE, RANK = "FakeEngine", "RayTrainWorker"
BETWEEN = "^ray::(IDLE|ReadRange|MapBatches.read_requests)"  # of short tasks, or idle between two of them
#: ``share`` of a hundred seeds: those that take long are few
KINDS = {
    "generation": Kind(Generation, 62, {"engine": ENGINE, "data worker": BETWEEN, "raylet": ENGINE}, 0.8, 0.5),
    "training": Kind(
        partial(Training, workers=1), 22, {"rank": RANK, "raylet": RANK, "controller": "TrainController"}, 0.8, 0.3
    ),
    "two ranks": Kind(partial(Training, workers=2), 4, {"rank": RANK, "raylet": RANK}, 0.8, 0.3),
    "pipeline": Kind(
        Whole, 8, {"engine": "TransformersEngine", "rank": RANK, "raylet": "^ray::(MapWorker|RayTrain)"}, 0.4, 4.0
    ),
    "sweep": Kind(Sweep, 4, {"trial": "ImplicitFunc", "rank": RANK}, 0.3, 6.0),
}


class References:
    """Undisturbed runs, each made once, when first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder / "undisturbed"
        self.store = Store(str(self.folder))
        self.model, self.teacher = save_tiny_model(folder / "model"), save_tiny_model(folder / "teacher", seed=5)

    def responses(self, job: Job) -> pa.Table:
        out = Artifact(self.store, "responses-0")
        if not out.store.exists(out.file("rows")):
            whole_runs.generate(Job(job.stage, job.config, job.inputs, out, job.runtime))
        return out.table()

    def training(self, workers: int) -> Artifact:
        job = training_job(Store(str(self.folder / f"workers-{workers}")), self.model, workers)
        if workers == 1:
            return train_alone(job, self.folder)
        if not job.out.finished:
            _run(Driver(drivers.stage, training.run, job), self.folder / f"workers-{workers}.log")
        return job.out


def train_alone(job: Job, folder: Path) -> Artifact:
    """A training job without Ray: one process of its own, one thread, nothing that disturbs."""
    out = Artifact(Store(str(folder / "alone")), job.out.name)
    if not out.store.exists(out.file("files")):
        alone = Job(job.stage, job.config, job.inputs, out, job.runtime)
        _run(Driver(_train_here, alone), folder / "alone.log")
    return out


def _run(driver: Driver, log: Path) -> None:
    """To its end: Ray Train's controller lives as long as the process that started it, where that has a main thread only."""
    process = driver.start(log)
    process.join(600)
    assert process.exitcode == 0, f"{process.exitcode}: {log.read_text()}"


def _train_here(job: Job) -> None:
    torch.set_num_threads(1)
    with only_worker():
        session(job)


def training_job(store: Store, model: Path, workers: int) -> Job:
    train = {"workers": workers, "zero_stage": 2, "checkpoint_every": 10}
    return distill_job(store, model, train=train, epochs=50, lora={"r": 4, "dropout": 0.2})


def steps(out: Artifact) -> int:
    """Steps until the last checkpoint that Ray Train has committed."""
    if not out.store.exists(record_of(out)):
        return 0
    try:
        latest = out.store.read_json(record_of(out)).get("latest_checkpoint_result")
    except ValueError:  # it is being written
        return 0
    return int(latest["metrics"]["step"]) if latest else 0


def whole_experiment(store: Store, folder: Path, teacher: Path, student: Path) -> Path:
    """Ten epochs of distillation on the text of two tiny models that need no SFT."""
    rows = [{"prompt": " ".join(f"w{(i + j) % 40}" for j in range(3 + i % 3)), "reference": f"w{i}"} for i in range(40)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher_model, student_model = ({"path": str(path), "max_length": 64} for path in (teacher, student))
    pool = {"cpus": 0.5, "batch_size": 4}
    experiment = {
        "name": "tiny",
        "data": {
            "source": "files",
            "path": str(folder / "data.jsonl"),
            "fractions": {"train": 0.1, "distill": 0.5, "dev": 0.2, "test": 0.2},
        },
        "teacher": {"model": teacher_model, "engine": "transformers", "draw": {"temperatures": [0.0]}},
        "student": {"model": student_model, "engine": "transformers", "draw": {"temperatures": [1.0]}},
        "generate": {"max_tokens": 6},
        "pairs": {
            "drop_truncated_chosen": False,
            "chosen": {"policy": "teacher", "temperature": 0.0},
            "rejected": {"policy": "student", "temperature": 1.0},
        },
        "distill": {"batch_size": 8, "learning_rate": 1e-2, "epochs": 10, "lora": {"r": 4, "dropout": 0.2}},
        "scorer": {"name": "rouge"},
        "evaluate": {"temperatures": [0.0], "bootstrap": 100},
        "runtime": {
            "store": store.root,
            "teacher": pool,
            "student": pool,
            "train": {"zero_stage": 0, "checkpoint_every": 5},
        },
    }
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(experiment))
    return file
