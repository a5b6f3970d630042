"""What the parts share: lazy stage functions, and content hashes in place of paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plad_ray.artifacts import hash_path
from plad_ray.config import Model
from plad_ray.errors import PladError
from plad_ray.models.policy import identity
from plad_ray.stages import Job, Outcome, Stage


@dataclass(frozen=True)
class Made:
    """What distillation can draw on: ``student`` holds the stages of the newest student, oldest first."""

    prompts: Stage
    teacher: Stage | None
    student: tuple[Stage, ...]
    texts: dict[str, Stage] = field(default_factory=dict)  # inputs of the pair builders

    @property
    def initial(self) -> Stage | None:
        """The SFT of the student, before any distillation."""
        return self.student[0] if self.student else None


def lazy(module: str, function: str = "run") -> Callable[[Job], Outcome]:
    """A stage function whose module (torch, vLLM, …) is imported when the stage runs, not when it is planned."""

    def run(job: Job) -> Outcome:
        return getattr(import_module(module), function)(job)

    return run


def model_identity(model: Model) -> dict[str, Any]:
    """The model's settings, with what it is in place of where it lies."""
    settings = model.model_dump(mode="json", exclude={"path", "adapter", "revision", "api"})
    return {**settings, "content": identity(model)}


def source_hash(name: str) -> str:
    """Hash of the file that ``package.module:attribute`` comes from. Raises PladError when there is none."""
    spec = find_spec(name.partition(":")[0])
    if spec is None or spec.origin is None:
        raise PladError(f"{name}: the module cannot be found on the Python path")
    return hash_path(Path(spec.origin))


def present(inputs: dict[str, Stage | None]) -> dict[str, Stage]:
    return {key: stage for key, stage in inputs.items() if stage is not None}
