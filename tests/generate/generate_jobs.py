"""Prompts of words, tiny models and jobs for the generate stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from plad_ray import records
from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Api, Generate, Model, Runtime
from plad_ray.generate import parts
from plad_ray.stages import Job

MAX_LENGTH = 48


def prompt_rows(count: int, split: str = "distill", start: int = 0) -> list[dict[str, Any]]:
    """Prompts ``w0 w1 w2 w3`` … of the tiny models' 40 words."""
    return [
        {
            "prompt_id": f"{split}-{i}",
            "split": split,
            "group": str(i),
            "prompt": " ".join(f"w{(i + j) % 40}" for j in range(4 + i % 3)),
            "messages": None,
            "reference": "w1",
        }
        for i in range(start, start + count)
    ]


def prompts_artifact(store: Store, rows: list[dict[str, Any]], name: str = "prompts-0") -> Artifact:
    artifact = Artifact(store, name)
    artifact.write_rows(pa.Table.from_pylist(rows, schema=records.PROMPT))
    return artifact


def succeeded(out: Artifact) -> set[str]:
    """rids that have a response in a part file."""
    return {row["rid"] for t in parts.tables(out, ["rid", "error"]) for row in t.to_pylist() if row["error"] is None}


def numbered(asked: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Requests as the stage numbers them."""
    return list(parts.remaining(asked, parts.Numbers(), Counter()))


def draw(split: str = "distill", temperatures: tuple[float, ...] = (0.7,), samples: int = 1, limit: int | None = None):
    return {"split": split, "temperatures": list(temperatures), "samples": samples, "limit": limit}


def policy(
    model: Path, role: str = "teacher", engine: str = "fake", draws: list | None = None, **settings: Any
) -> dict:
    section = Model(path=str(model), **{"max_length": MAX_LENGTH, **settings})
    return {"model": section.model_dump(mode="json"), "engine": engine, "role": role, "draws": draws or [draw()]}


def make_job(
    store: Store,
    policies: dict[str, Any],
    inputs: dict[str, Artifact],
    runtime: dict[str, Any] | None = None,
    out: str = "responses-0",
    progress: Any = None,
    **generate: Any,
) -> Job:
    config = {
        "policies": policies,
        "generate": Generate(**{"max_tokens": 8, **generate}).model_dump(mode="json"),
        "seed": 0,
    }
    extra = {} if progress is None else {"progress": progress}
    return Job("responses", config, inputs, Artifact(store, out), Runtime.model_validate(runtime or {}), **extra)


def adapter_artifact(
    store: Store,
    base: Path,
    name: str,
    scale: float = 0.3,
    seed: int = 1,
    rank: int = 4,
    targets: Sequence[str] = ("q_proj", "v_proj"),
) -> Artifact:
    """A LoRA adapter with random weights on ``base``; ``scale`` 0 leaves B at zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig

    from plad_ray.models.load import auto_class, is_seq2seq

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(base)
    task = "SEQ_2_SEQ_LM" if is_seq2seq(config) else "CAUSAL_LM"
    model = get_peft_model(
        auto_class(config).from_pretrained(base),
        LoraConfig(r=rank, lora_alpha=16, target_modules=list(targets), task_type=task),
    )
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=scale) if scale else torch.nn.init.zeros_(parameter)
    artifact = Artifact(store, name)
    model.save_pretrained(artifact.store.path(artifact.file("files")))
    return artifact


def api_policy(url: str, draws: list | None = None, **settings: Any) -> dict:
    """A teacher behind an API."""
    section = Model(api=Api(base_url=url, name="m", **settings))
    return {"model": section.model_dump(mode="json"), "engine": "openai", "role": "teacher", "draws": draws or [draw()]}
