"""Which layer gets which base weight: W = b·W_start + (1 − b)·W_distilled with b of the part that the layer is in.

The papers' α goes the other way. "Mitigating the Alignment Tax of RLHF" (arXiv 2309.06256, §6) writes
θ = α·θ_aligned + (1 − α)·θ_0, its published code W_0·α + W_aligned·(1 − α), and the recommended α = 0.2 is the code's: 20 %
of the model before alignment. ``base_weight`` here is always the weight of the model before.

Shape suffixes: K parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from plad_ray.errors import PladError

THIRDS = ("low", "middle", "high")
_LAYER = re.compile(r"^(.*?)\.(\d+)\.")


def layers_of(modules: Iterable[str]) -> list[list[str]]:
    """Modules by layer, from the input on; an encoder's layers come before its decoder's. Modules that lie in no layer
    (an LM head) are left out."""
    found: dict[tuple[bool, str, int], list[str]] = {}
    for name in sorted(modules):
        if match := _LAYER.match(name):
            stack, index = match.groups()
            found.setdefault(("encoder" not in stack, stack, int(index)), []).append(name)
    return [found[key] for key in sorted(found)]


def split(layers: int, parts: int) -> list[range]:
    """``parts`` runs of ``layers`` layers, as in the paper: 26 in 3 are 0–7, 8–16, 17–25.

    Raises PladError when there are more parts than layers.
    """
    if parts > layers:
        raise PladError(f"{parts} parts of {layers} adapted layers: merge.parts can be at most {layers}")
    bounds = [part * layers // parts for part in range(parts + 1)]
    return [range(first, end) for first, end in pairwise(bounds)]


def third(layers: int, which: str) -> range:
    """The ``low`` (next to the input), ``middle`` or ``high`` third. Raises PladError below three layers."""
    if layers < len(THIRDS):
        raise PladError(f"merge.layers {which}: {layers} adapted layers have no thirds; use layers: all")
    return split(layers, len(THIRDS))[THIRDS.index(which)]


def base_weights(s_K: Tensor, base_weight: float, epsilon: float) -> Tensor:
    """[K] b_k = min(1, c·(σ(s_k) + ε)) with the one c for which their mean is ``base_weight``, whatever ``s_K``.

    While no part reaches 1, c = K·base_weight / Σ(σ(s) + ε): Eq. 11 of arXiv 2309.06256, which prints it without the K that
    its constraint (and its code) needs. A part that reaches 1 stays there and the others share what is left.
    """
    raw_K = torch.sigmoid(s_K) + epsilon
    if base_weight >= 1:
        return raw_K * 0 + 1
    total = base_weight * len(s_K)
    capped_K = torch.zeros_like(s_K, dtype=torch.bool)
    while True:
        scale = (total - capped_K.sum()) / raw_K[~capped_K].sum()
        weight_K = torch.where(capped_K, torch.ones_like(raw_K), raw_K * scale)
        over_K = weight_K > 1
        if not over_K.any():
            return weight_K
        capped_K = capped_K | over_K


def middle_first(runs: list[range]) -> Tensor:
    """[K] how hard the L1 term holds each part to the mean: (L − 1) / (|l − L/2| + 1), averaged over its layers l of L.

    With L = 26 it is the published code's 25 / (|l − 13| + 1).
    """
    total = runs[-1].stop
    return torch.tensor([sum((total - 1) / (abs(i - total / 2) + 1) for i in run) / len(run) for run in runs])
