"""Scorers and evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from plad_ray.config.base import Count, Section, SplitName, Temperature

#: how a scorer is shown the prompt; see ``plad_ray.reward.formats``
InputFormat = Literal["prompt", "last_turn", "open_assistant", "response_only"]
PLAIN: InputFormat = "prompt"


class Scorer(Section):
    """``demo``, ``rouge``, ``classifier`` (sequence-classification reward model) or ``package.module:function``."""

    name: str
    model: str | None = Field(None, description="classifier: hub id or folder")
    metric: Literal["rouge1", "rouge2", "rougeL"] = "rougeL"
    batch_size: Count = 32
    max_length: Count = 512
    format: InputFormat = Field(
        PLAIN,
        exclude_if=lambda value: value == PLAIN,  # what was scored before there were others keeps its name
        description="what it reads: the prompt as it is, a dialogue's last_turn, as open_assistant's reward models were "
        "trained, or the response_only; `plad study reward` measures which agrees with people",
    )

    @model_validator(mode="after")
    def _reads_the_prompt(self) -> Scorer:
        if self.name == "rouge" and self.format != PLAIN:
            raise ValueError(f"scorer.format {self.format}: rouge reads no prompt; leave format out")
        return self


class Evaluate(Section):
    temperatures: tuple[Temperature, ...] = (0.7, 0.0)
    split: SplitName = "test"
    limit: Count | None = None
    bootstrap: Count = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
