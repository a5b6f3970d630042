"""A user's own function as a scorer."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from plad_ray.config import Scorer
from plad_ray.errors import PladError


class FunctionScorer:
    """``package.module:function`` with signature ``(prompt, response, reference) -> float``, called row by row."""

    def __init__(self, scorer: Scorer, dialogue: bool = False):
        self.name = scorer.name
        self.function = load(scorer.name)

    @staticmethod
    def check(scorer: Scorer) -> None:
        load(scorer.name)

    def __call__(self, prompts: list[str], responses: list[str], references: list[str | None]) -> list[float]:
        scores = []
        for row in zip(prompts, responses, references, strict=True):
            value = self.function(*row)
            try:
                scores.append(float(value))
            except (TypeError, ValueError):
                raise PladError(
                    f"scorer {self.name} returned {value!r}, not a number, for the response {row[1][:80]!r}"
                ) from None
        return scores


def load(name: str) -> Callable[[str, str, str | None], float]:
    """The function called ``package.module:function``. Raises PladError when it cannot be imported or called."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PladError(f"scorer.name {name!r} cannot be imported: {error}") from None
    if not callable(function):
        raise PladError(f"scorer.name {name!r} is not a function (prompt, response, reference) -> float")
    return function
