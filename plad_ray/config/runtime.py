"""The ``runtime`` section: where and how, never what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from plad_ray.config.base import Count, Positive, Section


class Pool(Section):
    """Engine actors of one role."""

    replicas: Count = 1
    gpus: Annotated[float, Field(ge=0)] = Field(0, description="GPUs a replica; a fraction shares one")
    cpus: Annotated[float, Field(ge=0)] = 0.5
    accelerator_type: str | None = None
    batch_size: Count = 64
    engine_kwargs: dict[str, Any] = Field({}, description="passed to vLLM as they are")


class TrainRuntime(Section):
    workers: Count = 1
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    layout: Literal["auto", "shared", "concatenated"] = Field(
        "auto",
        description="a prompt laid down once for all its candidates, or once for each; auto: once where it is exact",
    )
    micro_batch: Count = Field(64, description="prompts a forward pass of one worker")
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "all"] = "none"
    gradient_checkpointing: bool = False
    checkpoint_every: Count = Field(100, description="optimizer steps between checkpoints")
    max_failures: Annotated[int, Field(ge=0)] = 3


class Runtime(Section):
    """Where and how, never what: nothing here changes an artifact's name."""

    store: str = "runs"
    ray_address: str | None = Field(None, description="null: RAY_ADDRESS, else a local Ray of this process")
    local_cpus: Count | None = Field(None, description="logical CPUs of a local Ray; null: max(4, cores)")
    parallel_stages: Count = 2
    teacher: Pool = Pool()
    student: Pool = Pool()
    train: TrainRuntime = TrainRuntime()
    verify_engine: bool = Field(True, description="after loading an adapter, check that it acts and log-probs agree")
