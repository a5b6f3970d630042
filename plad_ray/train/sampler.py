"""Which rows each step sees: a pure function of (seed, step), whatever the workers and micro-batches."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from plad_ray.errors import PladError


@dataclass(frozen=True)
class Plan:
    """``epochs`` passes over ``rows`` rows in steps of ``batch``, each epoch in its own order; the last is short."""

    rows: int
    batch: int
    epochs: float
    seed: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise PladError("there is no row to train on")

    @property
    def total(self) -> int:
        """Rows seen over the whole run."""
        return max(1, round(self.rows * self.epochs))

    @property
    def steps(self) -> int:
        return math.ceil(self.total / self.batch)

    def step_rows(self, step: int) -> list[int]:
        """Row indices of one optimizer step; a step may span two epochs."""
        stream = range(step * self.batch, min((step + 1) * self.batch, self.total))
        return [int(permutation(self.rows, self.seed, p // self.rows)[p % self.rows]) for p in stream]

    def epoch(self, step: int) -> float:
        """Epochs done once ``step`` (from 0) is done."""
        return min((step + 1) * self.batch, self.total) / self.rows


@lru_cache(maxsize=4)
def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed % 2**32, epoch]).permutation(rows)


def deal(indices: list[int], lengths: np.ndarray, workers: int, micro_batch: int) -> list[list[list[int]]]:
    """Deal a step's rows out as [micro-batch][worker][row]; rows of like length meet, so little is padded.

    Every worker gets the same number of micro-batches, at most ``micro_batch`` rows each; a share may be empty.
    """
    ordered = sorted(indices, key=lambda i: (-lengths[i], i))
    size = workers * micro_batch
    slabs = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [[slab[rank::workers] for rank in range(workers)] for slab in slabs]


def stateless_seed(*parts: int) -> int:
    """A 63-bit seed from integers, so dropout needs no generator state to resume exactly."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
