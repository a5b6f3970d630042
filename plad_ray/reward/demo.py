"""The demo task's exact reward."""

from __future__ import annotations

from plad_ray.config import Scorer
from plad_ray.data.demo import reward


class DemoScorer:
    """kept / (facts in the post + redundant + wrong), in [0, 1]; see ``plad_ray.data.demo.reward``."""

    def __init__(self, scorer: Scorer, dialogue: bool = False):
        pass

    @staticmethod
    def check(scorer: Scorer) -> None:
        """Nothing to set."""

    def __call__(self, prompts: list[str], responses: list[str], references: list[str | None]) -> list[float]:
        return [reward(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
