"""Weights & Biases: one run an artifact, continued under the same id when training resumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import wandb

from plad_ray.artifacts import Store
from plad_ray.config import Wandb
from plad_ray.track.base import Line, Subject


class WandbTracker:
    """Metrics under TRL's names by step. Its local files lie in ``<store>/wandb``, in the temporary folder where the store
    is no local one."""

    name = "Weights & Biases"
    errors = (wandb.Error, OSError)

    def __init__(self, subject: Subject, settings: Wandb):
        store = Store(subject.store)
        if store.local:
            Path(store.path("")).mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            id=subject.artifact,
            name=subject.artifact,
            resume="allow",
            config=subject.settings,
            dir=store.path("") if store.local else None,
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=30, disable_git=True, x_disable_stats=True
            ),
        )

    def log(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self.run.log({name: value for name, value in line.items() if name != "step"}, step=int(line["step"]))

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


TRACKER = WandbTracker
