"""The ``merge`` section: how a distilled student is averaged with what it was before."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from plad_ray.config.base import Count, Fraction, Positive, Section, Temperature


class Averaging(Section):
    """W = base_weight · W_start + (1 − base_weight) · W_distilled. What follows ``parts`` is read with ``parts`` only."""

    base_weight: Fraction = Field(0.2, description="weight of the start; with parts, its mean over the parts")
    layers: Literal["all", "low", "middle", "high"] = Field(
        "all", description="the third of the layers that is averaged; the others stay as distilled"
    )
    parts: Count | None = Field(None, description="runs of layers, each with a learned weight (AMA)")
    epsilon: Positive = Field(0.2, description="keeps the parts' weights near their mean: larger is nearer")
    learning_rate: Positive = 0.05
    epochs: Positive = 1
    batch_size: Count = 16
    l1: Annotated[float, Field(ge=0)] = Field(0.0, description="pull of every weight to the mean, middle layers more")
    prompts: Count = Field(2000, description="prompts of the distill shard that the distilled student answers")
    temperature: Temperature = 1.0
    top: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of the answers kept, best scores first")

    @model_validator(mode="after")
    def _one_way(self) -> Averaging:
        if self.parts is not None and self.layers != "all":
            raise ValueError(
                f"layers {self.layers} and parts {self.parts} exclude each other; parts average all layers"
            )
        return self
