"""ROUGE-1/2/L F1 by rouge_score with its stemmer (ROUGE-L over the whole text, not Lsum)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from rouge_score import rouge_scorer as library
from rouge_score import tokenizers

from plad_ray.evaluate.frame import METRICS


class _CachedTokenizer(tokenizers.Tokenizer):
    """The library's own tokenizer; stemming is most of its work, and references come up once a policy."""

    def __init__(self) -> None:
        self._cached = lru_cache(maxsize=50_000)(tokenizers.DefaultTokenizer(use_stemmer=True).tokenize)

    def tokenize(self, text: str) -> list[str]:
        return self._cached(text)


def rouge_scorer(metrics: tuple[str, ...] = METRICS) -> library.RougeScorer:
    return library.RougeScorer(list(metrics), tokenizer=_CachedTokenizer())


def rouge_columns(responses: list[str], references: list[str | None]) -> dict[str, np.ndarray]:
    """F1 × 100 of each row by metric, float [N]; NaN where there is no reference."""
    scorer = rouge_scorer()
    values = np.full((len(responses), len(METRICS)), np.nan)
    for i, (response, reference) in enumerate(zip(responses, references, strict=True)):
        if reference is not None:
            found = scorer.score(reference, response)
            values[i] = [100 * found[metric].fmeasure for metric in METRICS]
    return {metric: values[:, j] for j, metric in enumerate(METRICS)}
