"""A module's forward pass, exchanged for a while."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    """Within, calling ``module`` runs ``forward``; its hooks (ZeRO-3's, PEFT's) run as ever."""
    own = vars(module).get("forward")  # what somebody else has put there
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
