"""Portable training checkpoints: full fp32 weights and Adam moments, whatever ZeRO stage and worker count wrote them.

One safetensors file and one JSON file, no pickle. Dropout seeds, learning rate and rows are functions of the step, so
nothing else is state.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plad_ray.errors import PladError
from plad_ray.train.deepspeed import set_learning_rate

MOMENTS = ("exp_avg", "exp_avg_sq")
TENSORS, META = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Snapshot:
    """``tensors`` by ``<kind>/<parameter>`` (weight | exp_avg | exp_avg_sq), ``meta`` the step and metric lines."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def gather(engine: Any, kinds: tuple[str, ...] = ("weight",)) -> dict[str, Tensor]:
    """Full fp32 CPU tensors of every trainable parameter. Collective: all workers call it; only rank 0 keeps them."""
    found = {}
    for name, parameter in trainable(engine.module):
        for kind in kinds:
            tensor = _full(engine, parameter, kind)
            if engine.global_rank == 0:
                found[f"{kind}/{name}"] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    return found


def save(engine: Any, folder: Path, meta: dict[str, Any]) -> None:
    """Write a checkpoint into ``folder``. Collective; rank 0 writes, the JSON file last."""
    tensors = gather(engine, ("weight", *MOMENTS))
    if engine.global_rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / TENSORS)
        (folder / META).write_text(json.dumps({**meta, "adam_step": _adam_step(engine)}))


def load(folder: Path) -> Snapshot:
    return Snapshot(load_file(folder / TENSORS), meta(folder))


def meta(folder: Path) -> dict[str, Any]:
    """What a checkpoint tells of itself: its training's artifact (``of``), step, metric lines."""
    found: dict[str, Any] = json.loads((folder / META).read_text())
    return found


def restore_weights(module: nn.Module, snapshot: Snapshot) -> None:
    """Copy the weights in. Before ``deepspeed.initialize``: setting them afterwards leaves ZeRO's live copies stale."""
    expected = {name for name, _ in trainable(module)}
    saved = {key.removeprefix("weight/") for key in snapshot.tensors if key.startswith("weight/")}
    if expected != saved:
        odd = sorted(expected ^ saved)
        raise PladError(f"the checkpoint does not fit the model: {len(odd)} trainable weights differ, e.g. {odd[0]}")
    with torch.no_grad():
        for name, parameter in trainable(module):
            parameter.copy_(snapshot.tensors[f"weight/{name}"])


def restore_moments(engine: Any, snapshot: Snapshot, dry_step: Callable[[], None]) -> None:
    """Set Adam's moments and step count. ``dry_step`` makes one step of zero gradient and zero rate first: the
    optimizer has no state before it. Collective."""
    set_learning_rate(engine, 0.0)
    dry_step()
    for name, parameter in trainable(engine.module):
        for kind in ("weight", *MOMENTS):
            _set_full(engine, parameter, kind, snapshot.tensors[f"{kind}/{name}"])
    for state in _adam_states(engine):
        state["step"] = torch.full_like(torch.as_tensor(state["step"], dtype=torch.float32), snapshot.meta["adam_step"])


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def _full(engine: Any, parameter: nn.Parameter, kind: str) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if _sharded(parameter):
        if kind == "weight":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)
    return parameter if kind == "weight" else engine.optimizer.state[parameter][kind]


def _set_full(engine: Any, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    value = value.to(engine.device)
    if not _sharded(parameter):
        target = parameter if kind == "weight" else engine.optimizer.state[parameter][kind]
        with torch.no_grad():
            target.copy_(value)
    elif kind == "weight":  # the fp32 master: in bf16 the live copy alone would have lost bits
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, kind)


def _sharded(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed keeps this parameter's fp32 copy elsewhere; in ZeRO 0 and fp32 there is no copy."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _adam_states(engine: Any) -> list[dict[str, Any]]:
    return [state for state in engine.basic_optimizer.state.values() if "step" in state]


def _adam_step(engine: Any) -> float:
    return float(_adam_states(engine)[0]["step"])
