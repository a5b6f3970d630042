"""Prompts, and texts or pairs that somebody already has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plad_ray.artifacts import hash_path
from plad_ray.config import Experiment
from plad_ray.data import reading
from plad_ray.data.identity import identity
from plad_ray.errors import PladError
from plad_ray.parts.common import lazy
from plad_ray.remote import is_uri
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


def preferences(exp: Experiment, path: str | None, limit: int | None) -> Stage:
    """Human preferences in files (a path, folder or glob), at most ``limit``; without a path those of the demo task."""
    if path is None and exp.data.source != "demo":
        raise PladError("study.pairs: only the demo task has preferences of its own; name a file, folder or glob")
    config: dict[str, Any] = {"path": None, "limit": limit, "seed": exp.seed}
    if path is None:
        config["limit"] = limit or exp.data.sizes["test"]
        return Stage("preferences", lazy("plad_ray.data.preferences"), config, ray=False)
    files = reading.expand(path, "study.pairs")
    places = path if is_uri(path) else [str(Path(str(file)).resolve()) for file in files]
    config |= {"path": places, "source": [hash_path(file) for file in files]}
    identity = {"source": config["source"], "limit": limit}
    return Stage("preferences", lazy("plad_ray.data.preferences"), config, {}, identity, ray=False)


def preference_prompts(preferences: Stage) -> Stage:
    """The prompts of ``preferences``, each once."""
    return Stage(
        "preference-prompts",
        lazy("plad_ray.data.preferences", "prompts"),
        inputs={"preferences": preferences},
        ray=False,
    )


def _import(function: str, name: str, key: str, path: str, prompts: Stage) -> Stage:
    if is_uri(path):
        hashes = [hash_path(file) for file in reading.expand(path, key)]
        config = {"path": path, "source": hashes[0] if len(hashes) == 1 else hashes}
    elif not Path(path).exists():
        raise PladError(f"{key}: {path} does not exist")
    else:
        config = {"path": str(Path(path).resolve()), "source": hash_path(Path(path))}
    identity = {"source": config["source"]}
    return Stage(name, lazy("plad_ray.data.imports", function), config, {"prompts": prompts}, identity)
