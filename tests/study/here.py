"""Studies run in this process: real graph, real models and training, no Ray; and their artifacts read back plainly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from plad_ray import study
from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment, parse
from plad_ray.reward import run as reward
from plad_ray.stages import Job, Outcome, Stage, check, closure, execute
from plad_ray.study import stage as study_stage
from plad_ray.study.result import StudyResult
from tests.train import whole_runs


def word_numbers(prompt: str, response: str, reference: str | None) -> float:
    """A scorer: the mean of the numbers in w1, w2, …"""
    numbers = [int(word[1:]) for word in response.split() if word[1:].isdigit()]
    return sum(numbers) / max(1, len(numbers))


def score(job: Job) -> Outcome:
    """``reward.run`` without Ray Data."""
    _, rows, dialogue = reward.write_texts(job, with_references=True)
    scored = reward.ScoreBatches(job.config["scorer"], dialogue, [])(job.out.table(folder=reward.FOLDER))
    reward._check(scored, job.config["scorer"]["name"])
    job.out.write_rows(scored.select(reward.SCORE.names).cast(reward.SCORE))
    return Outcome(rows, scored.num_rows)


class Here:
    """Runs studies of one experiment folder, counting the stages that ran."""

    def __init__(self, folder: Path, student: Path, teacher: Path) -> None:
        self.folder, self.student, self.teacher = folder, student, teacher
        self.ran: list[Stage] = []
        rows = [{"prompt": f"w{i % 7} w{i % 5} w{i % 3} w{i}", "reference": f" w{5 + i % 20}"} for i in range(1, 40)]
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def experiment(self, split_seed: int | None = None, **sections: Any) -> Experiment:
        lora = {"r": 4, "dropout": 0.0, "target_modules": "all-linear"}
        base: dict[str, Any] = {
            "name": "tiny",
            "data": {
                "source": "files",
                "path": str(self.folder / "data.jsonl"),
                "fractions": {"train": 0.1, "distill": 0.4, "dev": 0.25, "test": 0.25},
                "split_seed": split_seed,
            },
            "teacher": {"model": {"path": str(self.teacher), "max_length": 64}, "engine": "transformers"},
            "student": {"model": {"path": str(self.student), "max_length": 64}, "engine": "transformers"},
            "generate": {"max_tokens": 6},
            "pairs": {"drop_truncated_chosen": False},
            "distill": {"lora": lora, "learning_rate": 3e-2, "batch_size": 8},
            "scorer": {"name": "tests.study.here:word_numbers"},
            "evaluate": {"temperatures": [0.7], "bootstrap": 200},
            "runtime": {"store": str(self.folder / "runs"), "parallel_stages": 1, "train": {"zero_stage": 0}},
        }
        return parse({**base, **sections})

    def run(self, name: str, exp: Experiment, **settings: Any) -> tuple[StudyResult, Store, Stage]:
        """Until the study is there; its result and last stage."""
        kind, store = study.find(name), Store(exp.runtime.store)
        chosen = kind.settings.model_validate(settings)
        while True:
            plan = kind.plan(exp, chosen, store)
            targets = plan.targets if plan.last is None else [plan.last]
            self.ran += check(targets, store)
            execute(targets, store, exp.runtime, say=lambda _: None)
            if plan.last is not None:
                return study_stage.read(plan.last.artifact(store)), store, plan.last


def one_after_another(job: Job, work: Callable[[Job, int], Any], count: int) -> list[Any]:
    """``tasks.at_workers`` in this process."""
    return [work(job, number) for number in range(count)]


def patch(monkeypatch: Any) -> None:
    """Generation, scoring and training in this process."""
    for module, function in (("generate", whole_runs.generate), ("reward", score), ("train", whole_runs.train)):
        monkeypatch.setattr(f"plad_ray.{module}.run.run", function)
    for module in ("merge.stage", "study.likelihoods"):
        monkeypatch.setattr(f"plad_ray.{module}.at_workers", one_after_another)


def named(last: Stage, store: Store, wanted: Callable[[Stage], bool] | str) -> list[Artifact]:
    """Artifacts of the study's stages of that name, in the order of the graph."""
    test = (lambda s: s.name == wanted) if isinstance(wanted, str) else wanted
    return [stage.artifact(store) for stage in closure([last]) if test(stage)]


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    """Read by pyarrow alone."""
    return pads.dataset(f"{artifact.path}/rows", format="parquet").to_table().to_pylist()
