"""What is disturbed: small runs of the real stages, each of which can say how far it is and whether it ended as it should.

A scenario runs in this process (``run``) or, where its driver is to be killed, in one of its own (``driver``). What it
made is compared with an undisturbed run by ``check``, which raises AssertionError.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import torch
import yaml
from safetensors.torch import load_file

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment, load
from plad_ray.generate import parts
from plad_ray.generate import run as generation
from plad_ray.pipeline import plan
from plad_ray.stages import Job, Stage, job_of, run_stage
from plad_ray.train import run as training
from tests.conftest import only_worker, save_tiny_model
from tests.generate.generate_jobs import draw, make_job, policy, prompt_rows, prompts_artifact
from tests.train import whole_runs
from tests.train.train_jobs import distill_job, session

ROOT = Path(__file__).parents[2]
#: what a resumed training run may differ by from an unbroken one, in every loss and every weight
TOLERANCE = 1e-6


class Scenario(Protocol):
    #: who may be killed, by a pattern of its process's title, beside the run's own driver
    victims: dict[str, str]

    def run(self) -> None: ...

    def driver(self, log: Path) -> subprocess.Popen[bytes]: ...

    def progress(self) -> float:
        """The finished share, 0 to 1."""

    def check(self) -> None: ...


class OneStage:
    """A stage by itself."""

    job: Job
    function: Any

    def run(self) -> None:
        run_stage(Stage(self.job.stage, self.function, self.job.config), self.job, say=lambda _: None)

    def driver(self, log: Path) -> subprocess.Popen[bytes]:
        file = log.with_suffix(".job")
        file.write_bytes(pickle.dumps((self.function, self.job)))
        return start([sys.executable, "-m", "tests.chaos.driver", str(file)], log)


class Generation(OneStage):
    """Three fake engines of two roles; a block of 4 requests takes half a second."""

    victims: ClassVar = {
        "engine": "FakeEngine",
        "data worker": "ray::(IDLE|ReadRange|MapBatches.read_requests)",  # idle: between two of its short tasks
        "raylet": "FakeEngine",
    }
    prompts = 40
    function = staticmethod(generation.run)

    def __init__(self, store: Store, folder: Path, references: References):
        pool = {"batch_size": 4, "engine_kwargs": {"seconds": 0.5}}
        draws = [draw(temperatures=(0.0, 0.7))]
        policies = {role: policy(references.model, role, draws=draws) for role in ("teacher", "student")}
        inputs = {"prompts": prompts_artifact(store, prompt_rows(self.prompts))}
        self.job = make_job(store, policies, inputs, {"teacher": pool | {"replicas": 2}, "student": pool})
        self.total = self.prompts * 4
        self.references = references

    def progress(self) -> float:
        out = self.job.out
        return 1.0 if out.finished else 4 * len(out.store.files(out.file(parts.FOLDER))) / self.total

    def check(self) -> None:
        check_rows(self.job.out, self.total)
        expected = self.references.responses(self.job)
        assert self.job.out.table().equals(expected), "responses are not those of an undisturbed run"


class Training(OneStage):
    """90 steps of two workers with dropout, a checkpoint after every tenth."""

    victims: ClassVar = {"rank": "RayTrainWorker", "raylet": "RayTrainWorker", "controller": "TrainController"}
    steps = 90
    function = staticmethod(training.run)

    def __init__(self, store: Store, folder: Path, references: References):
        self.job = training_job(store, references.model, self.steps)
        self.references = references

    def progress(self) -> float:
        return 1.0 if self.job.out.finished else checkpoints(self.job.out) * 10 / self.steps

    def check(self) -> None:
        check_training(self.job.out, self.references.training(self.steps))


class Whole:
    """``plad run`` from prompts to report, with tiny models behind the transformers engine."""

    victims: ClassVar = {"engine": "TransformersEngine", "rank": "RayTrainWorker", "raylet": "ray::"}

    def __init__(self, store: Store, folder: Path, references: References):
        self.file, self.folder = whole_experiment(store, folder, references.model), folder
        self.exp, self.store = load(self.file), store
        self.stages = plan(self.exp).stages

    def driver(self, log: Path) -> subprocess.Popen[bytes]:
        return start([sys.executable, "-m", "plad_ray", "run", str(self.file)], log)

    def run(self) -> None:
        log = self.folder / "whole.log"
        assert self.driver(log).wait(600) == 0, log.read_text()[-2000:]

    def progress(self) -> float:
        return sum(s.artifact(self.store).finished for s in self.stages.values()) / len(self.stages)

    def check(self) -> None:
        check_store(self.store)
        made = {name: stage.artifact(self.store) for name, stage in self.stages.items()}
        assert all(artifact.finished for artifact in made.values())
        splits = made["prompts"].table(["split"]).column("split").to_pylist()
        check_rows(made["responses"], 2 * (splits.count("distill") + splits.count("test")))
        check_rows(made["eval-responses"], splits.count("test"))
        undisturbed = train_alone(self.stages["distill"], self.store, self.exp, self.folder)
        check_training(made["distill"], undisturbed)


class Sweep:
    """``plad study sweep``: two trials of Ray Tune; what is finished when the driver dies is not made again."""

    victims: ClassVar[dict[str, str]] = {}

    def __init__(self, store: Store, folder: Path, references: References):
        self.file, self.folder, self.store = whole_experiment(store, folder, references.model), folder, store
        raw = yaml.safe_load(self.file.read_text())
        raw["study"] = {"grid": {"distill.objective.margin": [0.5, 2.0]}}
        self.file.write_text(yaml.safe_dump(raw))
        self.finished: dict[str, bytes] = {}

    def driver(self, log: Path) -> subprocess.Popen[bytes]:
        return start([sys.executable, "-m", "plad_ray", "study", "sweep", str(self.file)], log)

    def run(self) -> None:
        self.finished = self._manifests()
        log = self.folder / "sweep.log"
        assert self.driver(log).wait(600) == 0, log.read_text()[-2000:]

    def progress(self) -> float:
        return len(self._manifests()) / 12

    def check(self) -> None:
        check_store(self.store)
        made = self._manifests()
        assert {name: made[name] for name in self.finished} == self.finished, "a finished stage was made again"
        assert sum(name.startswith("distill-try") for name in made) == 2
        assert [name for name in made if name.startswith("sweep-")], "no sweep"

    def _manifests(self) -> dict[str, bytes]:
        names = [name for name in self.store.files("") if name.endswith("/manifest.json")]
        return {name: self.store.read_bytes(name) for name in names}


SCENARIOS: dict[str, Any] = {"generation": Generation, "training": Training, "pipeline": Whole, "sweep": Sweep}


class References:
    """Undisturbed runs, each made once, when first asked for."""

    def __init__(self, folder: Path):
        self.store = Store(str(folder / "undisturbed"))
        self.model = save_tiny_model(folder / "model")

    def responses(self, job: Job) -> pa.Table:
        out = Artifact(self.store, "responses-0")
        if not out.store.exists(out.file("rows")):
            whole_runs.generate(Job(job.stage, job.config, job.inputs, out, job.runtime))
        return out.table()

    def training(self, steps: int) -> Artifact:
        job = training_job(self.store, self.model, steps)
        if not job.out.finished:
            run_stage(Stage(job.stage, training.run, job.config), job, say=lambda _: None)
        return job.out


def train_alone(stage: Stage, store: Store, exp: Experiment, folder: Path) -> Artifact:
    """A training stage whose inputs are in ``store``, without Ray: one process, one thread, nothing that disturbs."""
    job = job_of(stage, store, exp.runtime)
    alone = Job(job.stage, job.config, job.inputs, Artifact(Store(str(folder / "alone")), job.out.name), job.runtime)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with only_worker():
        session(alone)
    torch.set_num_threads(threads)
    return alone.out


def training_job(store: Store, model: Path, steps: int) -> Job:
    train = {"workers": 2, "zero_stage": 2, "checkpoint_every": 10}
    return distill_job(store, model, train=train, epochs=steps // 3, lora={"r": 4, "dropout": 0.2})


def whole_experiment(store: Store, folder: Path, model: Path) -> Path:
    """Two epochs of distillation on the text of two tiny models that need no SFT."""
    rows = [{"prompt": " ".join(f"w{(i + j) % 40}" for j in range(3 + i % 3)), "reference": f"w{i}"} for i in range(40)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    role = {"model": {"path": str(model), "max_length": 64}, "engine": "transformers"}
    pool = {"cpus": 0.5, "batch_size": 4}
    experiment = {
        "name": "tiny",
        "data": {
            "source": "files",
            "path": str(folder / "data.jsonl"),
            "fractions": {"train": 0.1, "distill": 0.5, "dev": 0.2, "test": 0.2},
        },
        "teacher": {**role, "draw": {"temperatures": [0.0]}},
        "student": {**role, "draw": {"temperatures": [1.0]}},
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


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    import ray

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with log.open("wb") as stream:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)


def checkpoints(out: Artifact) -> int:
    """Checkpoints that Ray Train has committed."""
    snapshot = out.file(f"work/train/{out.name}/checkpoint_manager_snapshot.json")
    if not out.store.exists(snapshot):
        return 0
    state = out.store.read_json(snapshot)
    name = (state.get("latest_checkpoint_result") or {}).get("checkpoint_dir_name", "checkpoint_-1")
    return int(name.rpartition("_")[2]) + 1


def check_rows(out: Artifact, total: int) -> None:
    """Each of ``total`` requests has exactly one row, and nothing of the run lies about."""
    rids = out.table(["rid"]).column("rid").to_pylist()
    assert len(rids) == len(set(rids)) == total, (
        f"{len(rids)} rows of {len(set(rids))} requests where {total} were made"
    )
    assert out.table(folder="errors").num_rows == 0
    assert out.manifest["rows"] == {"in": total, "out": total, "dropped": {}}
    check_store(out.store)


def check_training(out: Artifact, unbroken: Artifact) -> None:
    """The same steps, losses and weights."""
    got, expected = metrics(out), metrics(unbroken)
    assert [line["step"] for line in got] == [line["step"] for line in expected], "a step twice, or none"
    for name in ("loss", "grad_norm", "num_tokens"):
        columns = (torch.tensor([line[name] for line in lines], dtype=torch.float64) for lines in (got, expected))
        torch.testing.assert_close(*columns, rtol=TOLERANCE, atol=TOLERANCE)
    ours, theirs = (load_file(a.local_folder() / "adapter_model.safetensors") for a in (out, unbroken))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
    check_store(out.store)


def check_store(store: Store) -> None:
    """No lease is held, and no work is left behind."""
    left: Iterable[str] = (n for n in store.files("") if n.endswith("/lease.json") or "work" in n.split("/")[1:-1])
    assert not [*left], [*left]


def metrics(out: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out.local_folder() / "metrics.jsonl").read_text().splitlines()]
