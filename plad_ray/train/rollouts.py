"""Fresh samples of the student that is being trained, drawn inside the worker from its live weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from plad_ray.models.sampling import Mixture, sample
from plad_ray.objectives import Rollout
from plad_ray.train.frozen import speaking
from plad_ray.train.layout import Row, filler
from plad_ray.train.logprobs import ResponseValues
from plad_ray.train.sampler import stateless_seed


@dataclass
class Rollouts:
    """Samples by (step, row index), for the steps of one window of ``settings.every``.

    A sample's random numbers depend on the run's seed, the step and the row alone, so neither workers nor micro-batches
    change them. ``in_step``: forward passes are collective (ZeRO-3 with several workers).
    """

    settings: Rollout
    module: ResponseValues
    eos: tuple[int, ...]
    max_tokens: int
    seed: int
    in_step: bool = False
    drawn: dict[tuple[int, int], tuple[list[int], list[float]]] = field(default_factory=dict)

    def wanted(self, step: int) -> bool:
        """Whether ``step`` trains on fresh samples; the same on all workers."""
        share = self.settings.share
        return share >= 1 or np.random.default_rng([self.seed % 2**32, step]).random() < share

    def starts_window(self, step: int) -> bool:
        return step % self.settings.every == 0

    def draw(self, asked: list[list[tuple[int, int, Row]]]) -> None:
        """Sample for every (step, row index, row) of ``asked``, a batch a list; an empty batch keeps other workers
        company."""
        self.drawn.clear()
        student = self.module.model
        with speaking(student):
            for batch in asked:
                prompts = [row.prompt.tolist() for _, _, row in batch] or [[0]]
                found = sample(
                    student,
                    prompts,
                    [self.settings.temperature] * len(prompts),
                    [stateless_seed(self.seed, step, index) for step, index, _ in batch] or [0],
                    self.max_tokens,
                    self.eos,
                    mixture=self._mixture(),
                    in_step=self.in_step,
                    vocabulary=self.module.shared_vocabulary,
                )
                for (step, index, _), drawn in zip(batch, found, strict=False):
                    self.drawn[step, index] = drawn

    def _mixture(self) -> Mixture | None:
        if self.settings.teacher_mix == 0:
            return None
        frozen, student = self.module.frozen, self.module.model
        return Mixture(
            frozen.own.get("teacher", student), self.settings.teacher_mix, lambda: frozen.view("teacher", student)
        )

    def row(self, step: int, index: int, row: Row) -> Row:
        """``row`` with its fresh sample as the last candidate (or the only one)."""
        return self._with(row, *self.drawn[step, index])

    def filler(self, like: Row) -> Row:
        """A row that contributes nothing, shaped as ``row`` makes them."""
        return filler(self._with(like, [0], [0.0]))

    def _with(self, row: Row, ids: list[int], logps: list[float]) -> Row:
        kept, scores = ((), ()) if self.settings.replaces else (row.candidates, row.scores)
        known = {"sampled_logp": (*(np.zeros(len(c), np.float32) for c in kept), np.array(logps, np.float32))}
        return replace(row, candidates=(*kept, np.array(ids, np.int32)), scores=(*scores, 0.0), known=known)
