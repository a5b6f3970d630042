"""Averaging of LoRA adapters in closed form, without the weights they lie on.

One base W lies under both ends. Start W + s₀·B₀A₀ (or W alone) and distilled W + s₁·B₁A₁ average to
W + (1 − b)·s₁·B₁A₁ + b·s₀·B₀A₀: a scaled B where the start is the bare base, else a stacked adapter of rank r₁ + r₀.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plad_ray.errors import PladError
from plad_ray.generate.vllm_engine import LORA_RANKS

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Factors:
    """A module's update ``scaling · b_OR @ a_RI`` (O outputs, I inputs, R rank), fp32."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """An adapter folder read: its PEFT configuration, and the factors by module name in the base model."""

    folder: Path
    config: dict[str, Any]
    modules: dict[str, Factors]


def read(folder: str | Path) -> Adapter:
    """Read a PEFT adapter folder. Raises PladError for one that is more than LoRA factors of one rank."""
    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise PladError(f"adapter {folder} cannot be averaged: it has a {key}")
    tensors = load_file(folder / TENSORS)
    others = sorted(name for name in tensors if not name.endswith((_A, _B)))
    if others:
        raise PladError(f"adapter {folder} cannot be averaged: {others[0]} is not a LoRA factor of a linear layer")
    rank = config["r"]
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    names = sorted(name.removesuffix(_A) for name in tensors if name.endswith(_A))
    modules = {
        name.removeprefix(_PREFIX): Factors(tensors[name + _A].float(), tensors[name + _B].float(), scaling)
        for name in names
    }
    return Adapter(folder, config, modules)


def check_ends(start: Adapter | None, distilled: Adapter) -> None:
    """PladError unless ``distilled`` can have come from ``start``: both adapt the same modules."""
    if start is None or start.modules.keys() == distilled.modules.keys():
        return
    odd = sorted(start.modules.keys() ^ distilled.modules.keys())
    raise PladError(
        f"adapter {distilled.folder} did not start from {start.folder}: {odd[0]} is adapted by only one of them, so there "
        "is nothing to average it with"
    )


def average(start: Adapter | None, distilled: Adapter, base_weight: Mapping[str, float]) -> dict[str, Factors]:
    """The averaged factors by module; ``base_weight`` gives b of each. ``start`` None is the bare base.

    An end that weighs nothing anywhere is left out, so b = 0 and b = 1 are the ends themselves.
    """
    check_ends(start, distilled)
    weights = [base_weight[name] for name in distilled.modules]
    if start is None or not any(weights):
        return {name: _scaled(factors, 1 - base_weight[name]) for name, factors in distilled.modules.items()}
    if all(weight == 1 for weight in weights):
        return dict(start.modules)
    return {
        name: _stacked(_scaled(factors, 1 - base_weight[name]), _scaled(start.modules[name], base_weight[name]))
        for name, factors in distilled.modules.items()
    }


def write(factors: dict[str, Factors], like: Adapter, folder: Path) -> None:
    """A PEFT adapter folder with ``factors``; everything else that its configuration says is that of ``like``.

    Raises PladError when the rank is above what vLLM serves.
    """
    one = next(iter(factors.values()))
    rank = len(one.a_RI)
    if rank > LORA_RANKS[-1]:
        raise PladError(
            f"the averaged adapter has rank {rank}, and vLLM serves at most {LORA_RANKS[-1]}; use a smaller lora.r"
        )
    alpha = one.scaling * rank
    config = like.config | {
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": False,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    tensors = {}
    for name, factor in factors.items():
        tensors[_PREFIX + name + _A] = factor.a_RI.contiguous()
        tensors[_PREFIX + name + _B] = factor.b_OR.contiguous()
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})


def _scaled(factors: Factors, weight: float) -> Factors:
    return Factors(factors.a_RI, factors.b_OR * weight, factors.scaling)


def _stacked(one: Factors, other: Factors) -> Factors:
    """The sum of two updates: s·[B, (s'/s)·B'] @ [A; A']."""
    b_OR = torch.cat([one.b_OR, other.b_OR * (other.scaling / one.scaling)], dim=1)
    return Factors(torch.cat([one.a_RI, other.a_RI]), b_OR, one.scaling)
