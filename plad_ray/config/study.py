"""A study file: the experiment it is derived from, what is laid over it, and the study's own settings.

experiment: ../demo.yaml      # relative to the study file; the file may also be an experiment itself
override: {name: tuned, evaluate.limit: 512, compare: {…}}   # as on the command line: each value replaces
study: {seeds: [0, 1, 2]}     # settings of the study that the command names
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, field_validator

from plad_ray.config.base import Section, explain
from plad_ray.config.experiment import Experiment
from plad_ray.config.loading import apply_override, parse, put, read
from plad_ray.errors import PladError

FILE_KEYS = {"experiment", "override", "study"}


class StudySettings(Section):
    """What every study takes."""

    seeds: tuple[int, ...] | None = Field(None, description="the experiment is run with each; null: with its own seed")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return seeds if seeds is None else _distinct(seeds, "seeds")


def _distinct(values: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{what} must be at least one, each given once")
    return values


S = TypeVar("S", bound=StudySettings)


def load_study(
    name: str, settings: type[S], path: str | Path, overrides: list[str] | tuple[str, ...] = ()
) -> tuple[Experiment, S]:
    """The experiment and the settings of study ``name``. Overrides that begin with ``study.`` go to the settings.

    Raises PladError naming the file, the key, the value and what would be right.
    """
    file = Path(path)
    raw = read(file)
    own: dict[str, Any] = {"study": raw.pop("study", None) or {}}
    if "experiment" in raw:
        raw = _derived(file, raw)
    elif "override" in raw:
        raise PladError(f"{file}: override without experiment: name the experiment file that it is laid over")
    for override in overrides:
        apply_override(own if override.startswith("study.") else raw, override)
    try:
        found = settings.model_validate(own["study"])
    except ValidationError as error:
        lines = "\n".join(explain(e, settings, "study.") for e in error.errors())
        raise PladError(f"{file}: settings of study {name}:\n{lines}") from None
    return parse(raw, str(file)), found


def study_files(path: Path) -> tuple[Path, ...]:
    """The study file, and the experiment file that it names where it does."""
    named = read(path).get("experiment")
    return (path,) if named is None else (path, path.parent / str(named))


def _derived(file: Path, raw: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(raw) - FILE_KEYS)
    if unknown:
        raise PladError(
            f"{file}: unknown key {unknown[0]}; a study file has experiment, override and study: what is laid over the "
            f"experiment stands below override (override.{unknown[0]})"
        )
    base = read(file.parent / str(raw["experiment"]))
    changes = raw.get("override") or {}
    if not isinstance(changes, dict):
        raise PladError(f"{file}: override is a mapping of keys to values, e.g. {{evaluate.limit: 512}}")
    for key, value in changes.items():
        put(base, str(key), value, f"override {key}")
    return base
