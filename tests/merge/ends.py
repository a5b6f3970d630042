"""Both ends of an average, as training leaves them, and the dense average that LoRA arithmetic has to equal."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Lora, Model
from plad_ray.models.load import load_base, load_model, load_tokenizer
from plad_ray.models.policy import Policy, resolve
from plad_ray.train.adapter import save_adapter, with_lora

LAYERS = 4


def make_end(base: Path, folder: Path, seed: int, scale: float = 0.1, only: str = "", **lora) -> Path:
    """A random adapter of rank 4 on ``base``; ``only``: modules without it in their name have B = 0."""
    policy = resolve(Model(path=str(base)))
    model = with_lora(load_base(policy), policy, Lora(**{"r": 4, **lora}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weights[name] = torch.randn(parameter.shape, generator=generator) * scale
            if "lora_B" in name and only not in name:
                weights[name] *= 0
    save_adapter(model, weights, folder, load_tokenizer(policy), policy)
    return folder


def policy_of(base: Path, adapter: Path | None = None) -> Policy:
    return resolve(Model(path=str(base), adapter=None if adapter is None else str(adapter)))


def merged(policy: Policy) -> dict[str, Tensor]:
    """Every weight of base + adapter, put together by PEFT."""
    model = load_model(policy)
    return (model.merge_and_unload() if policy.adapter else model).state_dict()


def dense(start: Policy, distilled: Policy, base_weight: dict[int | None, float]) -> dict[str, Tensor]:
    """b·W_start + (1 − b)·W_distilled of every weight; ``base_weight`` by layer, None: outside the layers."""
    first, last = merged(start), merged(distilled)
    found = {}
    for name, weight in last.items():
        layer = int(name.split(".layers.")[1].split(".")[0]) if ".layers." in name else None
        b = base_weight[layer]
        found[name] = b * first[name] + (1 - b) * weight
    return found


def log_probs(model: torch.nn.Module) -> Tensor:
    ids = torch.arange(3, 27).view(3, 8)
    with torch.no_grad():
        return model(input_ids=ids).logits.log_softmax(-1)


def dense_log_probs(base: Path, weights: dict[str, Tensor]) -> Tensor:
    model = load_model(policy_of(base))
    model.load_state_dict(weights)
    return log_probs(model)


def adapter_artifact(store: Store, name: str, folder: Path) -> Artifact:
    store.upload(folder, f"{name}/files")
    made = Artifact(store, name)
    made.finish({"rows": {"in": 0, "out": 0, "dropped": {}}, "seconds": 0, "metrics": {}})
    return made


def rows_artifact(store: Store, name: str, rows: list[dict], schema: pa.Schema) -> Artifact:
    made = Artifact(store, name)
    made.write_rows(pa.Table.from_pylist(rows, schema=schema))
    made.finish({"rows": {"in": len(rows), "out": len(rows), "dropped": {}}, "seconds": 0, "metrics": {}})
    return made
