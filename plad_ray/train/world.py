"""A worker among workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class World:
    """A worker's place and its two ways out: the checkpoint to resume from, and where to hand the next one."""

    rank: int
    workers: int
    device: torch.device
    resume: Path | None
    report: Callable[[dict[str, float], Path | None], None]  # collective; the folder is given on rank 0 only
