"""Variants of an experiment's training runs: one experiment whose arms are all of them, so that they share its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from plad_ray.config import Distill, Experiment, Pairs, overlay, parse
from plad_ray.config.base import Section
from plad_ray.config.loading import put
from plad_ray.errors import PladError

MAIN = "distilled"
Sections = tuple[Pairs, Distill]


def vary_arm(sections: Sections, changes: Mapping[str, Any], where: str) -> Sections:
    """``sections`` with dotted ``changes`` such as ``distill.objective.margin`` or ``pairs.reward_share``.

    Raises PladError naming the key below ``where`` for one that is unknown or does not fit.
    """
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        put(nested, key, value, f"{where}: {key}")
    unknown = sorted(set(nested) - {"pairs", "distill"})
    if unknown:
        raise PladError(f"{where}: {unknown[0]}: an arm differs in pairs.… and distill.… only")
    pairs, distill = sections
    return (
        overlay(pairs, nested.get("pairs") or {}, f"{where}: pairs"),
        overlay(distill, nested.get("distill") or {}, f"{where}: distill"),
    )


def with_arms(exp: Experiment, arms: Mapping[str, Sections]) -> Experiment:
    """``exp`` with these training runs and no other; ``distilled`` keeps its own settings where it is not among them.

    Validated as any experiment is: the texts that each arm wants must be drawn, scores must be there.
    """
    pairs, distill = arms.get(MAIN, (exp.pairs, exp.distill))
    raw = exp.model_dump(mode="json", exclude={"pairs", "distill", "compare"})
    raw |= {"pairs": pairs.model_dump(mode="json"), "distill": _explicit(distill)}
    raw["compare"] = {
        name: {
            "pairs": _over(raw["pairs"], pairs, pairs.model_dump(mode="json")),
            "distill": _over(raw["distill"], distill, _explicit(distill)),
        }
        for name, (pairs, distill) in arms.items()
        if name != MAIN
    }
    return parse(raw, exp.name)


def _over(main: dict[str, Any], section: Section, dumped: dict[str, Any]) -> dict[str, Any]:
    """``dumped`` of ``section`` so that nothing of ``main``, which it is laid over, is left: what it leaves out because it
    is the default (``exclude_if``) is said where ``main`` says something else."""
    return {name: getattr(section, name) for name in main if name not in dumped} | dumped


def _explicit(distill: Distill) -> dict[str, Any]:
    """The section with every field of its objective, so that nothing is taken from another arm."""
    objective = {"name": distill.objective.name, **asdict(distill.objective.built())}
    return distill.model_dump(mode="json") | {"objective": objective}
