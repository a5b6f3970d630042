"""Settings of a search on the dev prompts."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Any

from pydantic import Field, model_validator

from plad_ray.config.base import Count, Section
from plad_ray.errors import PladError

Grid = dict[str, tuple[Any, ...]]


class Search(Section):
    """Every arm is trained with each candidate of its grid on each of ``seeds``, and the best on dev is kept. All arms
    get the same number of trials."""

    seeds: tuple[int, ...] | None = Field(None, description="null: those of the study")
    grid: Grid = Field(
        {"distill.learning_rate": (1e-4, 3e-4, 1e-3)},
        description="keys of an arm (distill.…, pairs.…) and the values tried, for every arm",
    )
    own: dict[str, Grid] = Field({}, description="by arm, further keys of its own")
    trials: Count | None = Field(None, description="drawn from each arm's grid; null: all of it, equal for all arms")

    @model_validator(mode="after")
    def _values(self) -> Search:
        for key, values in [*self.grid.items(), *(item for own in self.own.values() for item in own.items())]:
            if not values:
                raise ValueError(f"search: {key} has no value to try")
        return self

    def candidates(self, arms: list[str]) -> dict[str, list[dict[str, Any]]]:
        """By arm, the changes of each trial. Raises PladError where arms would get different numbers of trials."""
        unknown = sorted(set(self.own) - set(arms))
        if unknown:
            raise PladError(f"study.search.own.{unknown[0]}: no such arm; arms: {', '.join(arms)}")
        grids = {arm: _all({**self.grid, **self.own.get(arm, {})}) for arm in arms}
        sizes = {arm: len(grid) for arm, grid in grids.items()}
        wanted = self.trials or max(sizes.values())
        short = [arm for arm, size in sizes.items() if size < wanted]
        if short or (self.trials is None and min(sizes.values()) < wanted):
            raise PladError(
                f"study.search: {short[0]} has {sizes[short[0]]} candidates where every arm is to get {wanted} trials: give "
                f"it more values, or set study.search.trials to at most {min(sizes.values())}"
            )
        return {arm: Random(0).sample(grid, wanted) if wanted < len(grid) else grid for arm, grid in grids.items()}


def _all(grid: Grid) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
