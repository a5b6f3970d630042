"""From a YAML file and dotted overrides to an Experiment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from plad_ray.config.base import explain
from plad_ray.config.experiment import Experiment
from plad_ray.errors import PladError


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """Read an experiment file and lay dotted ``a.b=c`` overrides (values in YAML) over it.

    Raises PladError naming the file, the key, the value and what would be right.
    """
    raw = read(path, overrides)
    if "experiment" in raw:
        raise PladError(
            f"{path}: a study file and no experiment; run it by `plad study NAME {path}`, submit it by `plad submit --study "
            f"NAME {path}`"
        )
    return parse(raw, str(path))


def read(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The file as a mapping, the overrides in it, not validated."""
    file = Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PladError(f"{file}: no such experiment file") from None
    except UnicodeDecodeError as error:
        raise PladError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise PladError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise PladError(f"{file}: an experiment is a mapping of sections (name, data, teacher, student, …)")
    for override in overrides:
        apply_override(raw, override)
    return raw


def parse(raw: dict[str, Any], where: str = "experiment") -> Experiment:
    """Validate a mapping; one PladError lists every problem."""
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        raise PladError(f"{where}:\n" + "\n".join(explain(e, Experiment) for e in error.errors())) from None


def vary(exp: Experiment, changes: Mapping[str, Any], where: str) -> Experiment:
    """``exp`` with dotted ``changes`` laid over it as overrides are, validated as any experiment is.

    Raises PladError beginning with ``where``.
    """
    raw = exp.model_dump(mode="json")
    for key, value in changes.items():
        put(raw, key, value, f"{where}: {key}")
    return parse(raw, where)


def apply_override(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key or ".." in key or key.startswith(".") or key.endswith("."):
        raise PladError(f"override {override!r}: write it as section.key=value, e.g. distill.objective.margin=0.5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PladError(f"override {override!r}: the value is not valid YAML: {error}") from None
    put(raw, key, value, f"override {override!r}")


def put(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the dotted ``key`` of nested sections. Raises PladError beginning with ``where``."""
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise PladError(f"{where}: {parent} is a value, not a section")
        node = child
    node[last] = value
