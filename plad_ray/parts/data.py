"""Prompts, and texts or pairs that somebody already has."""

from __future__ import annotations

from pathlib import Path

from plad_ray.artifacts import hash_path
from plad_ray.config import Experiment
from plad_ray.data.identity import identity
from plad_ray.errors import PladError
from plad_ray.parts.common import lazy
from plad_ray.stages import Stage

#: keys of the section that say where something lies on this machine; its content is hashed instead.
LOCATIONS = {"path", "splits_paths", "responses", "pairs", "hub", "revision"}


def prompts(exp: Experiment) -> Stage:
    data = exp.data.model_dump(mode="json")
    config = {"data": data, "seed": exp.seed, "source": identity(exp.data)}
    hashed = {**config, "data": {k: v for k, v in data.items() if k not in LOCATIONS}}
    return Stage("prompts", lazy("plad_ray.data.prepare"), config, {}, hashed)


def imported_responses(exp: Experiment, prompts: Stage) -> Stage | None:
    if exp.data.responses is None:
        return None
    return _import("run_responses", "imported", "data.responses", exp.data.responses, prompts)


def imported_pairs(exp: Experiment, prompts: Stage) -> Stage | None:
    if exp.data.pairs is None:
        return None
    return _import("run_pairs", "pairs", "data.pairs", exp.data.pairs, prompts)


def _import(function: str, name: str, key: str, path: str, prompts: Stage) -> Stage:
    if not Path(path).exists():
        raise PladError(f"{key}: {path} does not exist")
    config = {"path": str(Path(path).resolve()), "source": hash_path(Path(path))}
    identity = {"source": config["source"]}
    return Stage(name, lazy("plad_ray.data.imports", function), config, {"prompts": prompts}, identity)
