"""Wall-clock and processor time, since a machine that others use makes the first meaningless."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

#: Steps at the start of a run that are not counted.
WARM = 1


class Time(NamedTuple):
    wall: float
    cpu: float  # of all threads together


def now() -> Time:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # what was asked of a GPU is part of the time
    return Time(time.perf_counter(), time.process_time())


def since(began: Time) -> Time:
    return Time(*(later - earlier for later, earlier in zip(now(), began, strict=True)))


def timed(work: Callable[[], object]) -> Time:
    began = now()
    work()
    return since(began)


def middle(times: list[Time]) -> Time:
    """Medians without the first ``WARM``."""
    counted = times[WARM:]
    return Time(median(t.wall for t in counted), median(t.cpu for t in counted))
