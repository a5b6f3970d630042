"""Scorers: ``(prompts, responses, references) -> scores``, larger is better. One file a scorer, one dict."""

from plad_ray.reward.base import SCORERS, Score, build, check

__all__ = ["SCORERS", "Score", "build", "check"]
