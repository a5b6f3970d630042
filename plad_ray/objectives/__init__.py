"""Training objectives: one file a method, and the one dict that lists them."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter, ValidationError

from plad_ray.errors import PladError
from plad_ray.objectives.aligndistil import AlignDistil
from plad_ray.objectives.base import Objective, Rollout, Terms, Values
from plad_ray.objectives.dpo import Dpo
from plad_ray.objectives.fdistill import FDistill
from plad_ray.objectives.gkd import Gkd
from plad_ray.objectives.kd import Kd
from plad_ray.objectives.lipo import Lipo
from plad_ray.objectives.minillm import MiniLlm
from plad_ray.objectives.plad import PladMargin, PladRank
from plad_ray.objectives.rrhf import Rrhf
from plad_ray.objectives.rso import Rso
from plad_ray.objectives.sft import SeqKD, Sft
from plad_ray.objectives.simpo import SimPO
from plad_ray.objectives.slic import Slic

OBJECTIVES: dict[str, type[Objective]] = {
    "sft": Sft,
    "seqkd": SeqKD,
    "plad_rank": PladRank,
    "plad_margin": PladMargin,
    "dpo": Dpo,
    "slic": Slic,
    "simpo": SimPO,
    "rrhf": Rrhf,
    "rso": Rso,
    "lipo": Lipo,
    "kd": Kd,
    "fdistill": FDistill,
    "minillm": MiniLlm,
    "gkd": Gkd,
    "aligndistil": AlignDistil,
}

__all__ = ["OBJECTIVES", "Objective", "Rollout", "Terms", "Values", "build"]


def build(name: str, params: dict[str, Any]) -> Objective:
    """The objective ``name`` (built in, or ``package.module:Class``) with its hyper-parameters. Raises PladError."""
    kind = _external(name) if ":" in name else OBJECTIVES.get(name)
    if kind is None:
        raise PladError(f"unknown objective {name!r}; known: {', '.join(OBJECTIVES)}, or package.module:Class")
    known = [f.name for f in fields(kind)]
    unknown = [key for key in params if key not in known]
    if unknown:
        raise PladError(f"objective {name} has no field {unknown[0]!r}; its fields: {', '.join(known)}")
    try:
        validator = _validator(kind)  # type: ignore[arg-type]  # mypy takes its instances' __hash__ for the class's
        return validator.validate_python(params)  # checks types: YAML reads 1e-3 as text
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise PladError(f"objective {name}: {first['msg'].removeprefix('Value error, ')}") from None
        field = ".".join(map(str, first["loc"]))
        raise PladError(f"objective {name}: {field}: {first['msg']} (given: {first['input']!r})") from None


@cache
def _validator(kind: Any) -> TypeAdapter[Objective]:
    return TypeAdapter(kind)


def _external(name: str) -> type[Objective]:
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PladError(f"objective {name!r} cannot be imported: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise PladError(f"objective {name!r} is not a subclass of plad_ray.objectives.Objective")
    return kind
