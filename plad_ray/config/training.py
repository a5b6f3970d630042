"""Training sections: optimizer settings, LoRA, SFT, distillation and its objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plad_ray.config.base import Count, Fraction, Positive, Section, overlay

if TYPE_CHECKING:
    from plad_ray import objectives


class Lora(Section):
    """Paper's values (PLaD §5.1): r 8, alpha 32, dropout 0.1. ``target_modules`` None is PEFT's per-architecture default."""

    r: Count = 8
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    target_modules: tuple[str, ...] | Literal["all-linear"] | None = None


class Training(Section):
    epochs: Positive = 1
    batch_size: Count = Field(64, description="prompts an optimizer step, over all workers")
    learning_rate: Positive = 1e-4
    warmup_ratio: Fraction = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: Positive = 1.0
    limit: Count | None = Field(None, description="train on this many rows only (a nested prefix)")


class Sft(Training):
    method: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()


class Objective(BaseModel):
    """``name`` of a built-in or ``package.module:Class``; the other keys are the objective's own fields."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = "plad_rank"

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def built(self) -> objectives.Objective:
        """What the section describes. Raises PladError for an unknown name or a field that is wrong."""
        from plad_ray.objectives import build

        return build(self.name, self.params)

    @model_validator(mode="after")
    def _known(self) -> Objective:
        self.built()
        return self


class Distill(Training):
    objective: Objective = Objective()
    method: Literal["lora", "full"] = Field(
        "lora",
        exclude_if=lambda value: value == "lora",  # what was trained before keeps its name
        description="train an adapter, or all weights: a whole model then, of a student that is no adapter itself",
    )
    lora: Lora = Lora()
    select_on_dev: dict[str, dict[str, Any]] = Field(
        {}, description="candidates by name, each a partial distill section; the best dev win rate is kept"
    )

    prompts: Count | None = Field(
        None,
        exclude_if=lambda value: value is None,  # what was trained before keeps its name
        description="train on the rows of the first so many distill prompts only, whatever was dropped (nested)",
    )
    rounds: Count = Field(1, description="iterative PLaD: new pairs from the newest adapter before each further round")

    def candidates(self) -> dict[str, Distill]:
        """The full sections that ``select_on_dev`` names."""
        base = self.model_copy(update={"select_on_dev": {}})
        return {n: overlay(base, changes, f"distill.select_on_dev.{n}") for n, changes in self.select_on_dev.items()}

    def with_candidates(self) -> tuple[Distill, ...]:
        return (self, *self.candidates().values())
