"""Settings of a sweep: how Ray Tune goes through the candidates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from plad_ray.config.base import Count, Section


class Tuning(Section):
    """The best trial is always chosen on dev, among the finished ones; ``metric`` only steers what is tried or stopped."""

    algorithm: Literal["grid", "asha", "optuna"] = Field(
        "grid", description="every candidate; all, the worse ones stopped early; or the trials that Optuna suggests"
    )
    trials: Count | None = Field(None, description="optuna: suggestions; null: as many as there are candidates")
    metric: str = Field("rewards/accuracies", description="of training, by which asha stops and optuna suggests")
    mode: Literal["max", "min"] = "max"
    grace_steps: Count = Field(20, description="asha: no trial is stopped before; reports come with checkpoints")
    reduction_factor: int = Field(3, ge=2, description="asha: of so many trials that come this far, one goes on")

    @property
    def stops_early(self) -> bool:
        return self.algorithm == "asha"

    @model_validator(mode="after")
    def _used(self) -> Tuning:
        if self.trials is not None and self.algorithm != "optuna":
            raise ValueError(f"trials is for algorithm optuna; {self.algorithm} tries every candidate")
        return self
