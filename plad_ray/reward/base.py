"""The dict of scorers and what each of them is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from plad_ray.config import Scorer
from plad_ray.config.evaluation import PLAIN
from plad_ray.errors import PladError
from plad_ray.reward.formats import FORMATS, Format

#: Scores a batch: three lists of the same length N (a reference may be None) -> N floats, larger is better.
Score = Callable[[list[str], list[str], list[str | None]], list[float]]

#: name -> module:class. The class takes (scorer, dialogue) and its instances are ``Score``s; ``check`` is its
#: cheap test of the settings, called before any actor starts.
SCORERS = {
    "demo": "plad_ray.reward.demo:DemoScorer",
    "rouge": "plad_ray.reward.rouge:RougeScorer",
    "classifier": "plad_ray.reward.classifier:ClassifierScorer",
}
FUNCTION = "plad_ray.reward.function:FunctionScorer"


def build(scorer: Scorer, dialogue: bool = False) -> Score:
    """The scorer's callable. ``dialogue``: prompts are conversations, whose end matters more than their beginning."""
    score: Score = _kind(scorer)(scorer, dialogue)
    return score if scorer.format == PLAIN else partial(_formatted, score, FORMATS[scorer.format])


def _formatted(
    score: Score, shown: Format, prompts: list[str], responses: list[str], references: list[str | None]
) -> list[float]:
    pairs = [shown(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    return score([question for question, _ in pairs], [answer for _, answer in pairs], references)


def check(scorer: Scorer) -> None:
    """Raise PladError for settings that cannot work, without loading weights."""
    _kind(scorer).check(scorer)


def scores_references(scorer: Scorer) -> bool:
    """Whether a reference's own score means something beside those of responses."""
    return getattr(_kind(scorer), "scores_references", True)


def check_wins(scorer: Scorer, what: str) -> None:
    """Raise PladError where ``what`` counts wins over the references and ``scorer`` gives these no score."""
    if not scores_references(scorer):
        raise PladError(
            f"{what} counts wins over the references, and scorer {scorer.name} compares with those; set scorer.name to "
            "demo, classifier or module:function"
        )


def _kind(scorer: Scorer) -> Any:
    """The scorer's class."""
    target = FUNCTION if ":" in scorer.name else SCORERS.get(scorer.name)
    if target is None:
        raise PladError(
            f"scorer.name: unknown scorer {scorer.name!r}; known: {', '.join(SCORERS)}, or package.module:function"
        )
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
