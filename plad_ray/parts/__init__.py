"""The stages that pipeline.py joins: what configures each, what is its identity, what it keeps busy."""

from plad_ray.parts.averaging import average
from plad_ray.parts.common import Made
from plad_ray.parts.data import imported_responses, preference_prompts, preferences, prompts
from plad_ray.parts.evaluation import evaluate, report
from plad_ray.parts.generation import generate_arms, generate_bases, generate_samples, score
from plad_ray.parts.training import adapters, sft, tables

__all__ = [
    "Made",
    "adapters",
    "average",
    "evaluate",
    "generate_arms",
    "generate_bases",
    "generate_samples",
    "imported_responses",
    "preference_prompts",
    "preferences",
    "prompts",
    "report",
    "score",
    "sft",
    "tables",
]
