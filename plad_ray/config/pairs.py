"""The ``pairs`` section: which texts are set against each other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from plad_ray.config.base import Count, Section, Temperature


class Pick(Section):
    """One side of a pair: which policy's text at which temperature."""

    policy: Literal["teacher", "student"]
    temperature: Temperature
    sample: Annotated[int, Field(ge=0)] = 0


class Pairs(Section):
    chosen: Pick = Pick(policy="teacher", temperature=0.7)
    rejected: Pick = Pick(policy="student", temperature=0.7)
    drop_truncated_chosen: bool = True
    limit: Count | None = Field(None, description="at most this many pairs (a nested prefix)")


class Arm(Section):
    """A further training run on the same responses: partial sections laid over `pairs` and `distill`."""

    pairs: dict[str, Any] = Field(default_factory=dict)
    distill: dict[str, Any] = Field(default_factory=dict)
