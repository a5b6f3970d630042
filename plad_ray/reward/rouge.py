"""ROUGE F1 against the human reference as a scorer."""

from __future__ import annotations

from plad_ray.config import Scorer
from plad_ray.errors import PladError


class RougeScorer:
    """``scorer.metric`` F1 in [0, 1]. A reference would score 1 against itself, so none is scored."""

    scores_references = False

    def __init__(self, scorer: Scorer, dialogue: bool = False):
        from plad_ray.evaluate.rouge import rouge_scorer  # NLTK behind it costs a plan seconds

        self.metric = scorer.metric
        self.rouge = rouge_scorer((scorer.metric,))

    @staticmethod
    def check(scorer: Scorer) -> None:
        """Nothing that could be wrong."""

    def __call__(self, prompts: list[str], responses: list[str], references: list[str | None]) -> list[float]:
        scores = []
        for prompt, response, reference in zip(prompts, responses, references, strict=True):
            if reference is None:
                raise PladError(f"scorer rouge needs a reference for every prompt; there is none for {prompt[:80]!r}")
            scores.append(self.rouge.score(reference, response)[self.metric].fmeasure)
        return scores
