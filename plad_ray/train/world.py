"""A worker among workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class World:
    """A worker's place; the checkpoint to resume from, where to hand the next one, and whether there should be one now."""

    rank: int
    workers: int
    device: torch.device
    resume: Path | None
    report: Callable[[dict[str, float], Path | None], None]  # collective; the folder is given on rank 0 only
    preempted: Callable[[], bool] = lambda: False  # collective: is any worker's machine about to be taken away
