"""Scorers and evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plad_ray.config.base import Count, Section, SplitName, Temperature


class Scorer(Section):
    """``demo``, ``rouge``, ``classifier`` (sequence-classification reward model) or ``package.module:function``."""

    name: str
    model: str | None = Field(None, description="classifier: hub id or folder")
    metric: Literal["rouge1", "rouge2", "rougeL"] = "rougeL"
    batch_size: Count = 32
    max_length: Count = 512


class Evaluate(Section):
    temperatures: tuple[Temperature, ...] = (0.7, 0.0)
    split: SplitName = "test"
    limit: Count | None = None
    bootstrap: Count = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
