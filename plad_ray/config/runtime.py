"""The ``runtime`` section: where and how, never what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from plad_ray.config.base import Count, Positive, Section
from plad_ray.config.tracking import Track

RoleName = Literal["teacher", "student"]


class ApiRuntime(Section):
    """How the endpoint of ``model.api`` is called. Limits are those of the whole role."""

    api_key_env: str | None = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key, on every node; null: none is sent"
    )
    concurrency: Count = Field(16, description="requests in flight")
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = Field(None, description="prompt and response together")
    retries: Annotated[int, Field(ge=0)] = Field(6, description="further tries of a request before it is an error row")
    timeout: Positive = Field(120, description="seconds a try may take")
    max_retry_after: Positive = Field(600, description="a longer Retry-After (seconds) fails the stage instead")
    input_price: Annotated[float, Field(ge=0)] | None = Field(None, description="price of a million prompt tokens")
    output_price: Annotated[float, Field(ge=0)] | None = Field(None, description="price of a million generated tokens")

    @model_validator(mode="after")
    def _name_of_a_variable(self) -> ApiRuntime:
        name = self.api_key_env
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # not quoted: it may be the key
            raise ValueError("api_key_env is no name of an environment variable; put the key there, never in this file")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("input_price and output_price go together: give both or none")
        return self


class Pool(Section):
    """Engine actors of one role."""

    replicas: Count = 1
    gpus: Annotated[float, Field(ge=0)] = Field(0, description="GPUs a replica; a fraction shares one")
    cpus: Annotated[float, Field(ge=0)] = 0.5
    accelerator_type: str | None = None
    batch_size: Count = 64
    engine_kwargs: dict[str, Any] = Field({}, description="passed to vLLM as they are")
    api: ApiRuntime | None = Field(None, description="for a role with engine openai; null: the defaults")


class TrainRuntime(Section):
    workers: Count = 1
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    accelerator_type: str | None = None
    layout: Literal["auto", "shared", "concatenated"] = Field(
        "auto",
        description="a prompt laid down once for all its candidates, or once for each; auto: once where it is exact",
    )
    micro_batch: Count = Field(64, description="prompts a forward pass of one worker")
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "all"] = "none"
    gradient_checkpointing: bool = False
    fused_kernels: bool = Field(False, description="Liger's kernels between the matrix products, for training on GPUs")
    checkpoint_every: Count = Field(100, description="optimizer steps between checkpoints")
    max_failures: Annotated[int, Field(ge=0)] = 3
    in_turn: Count = Field(
        1,
        description="trainings that one start of the workers does one after another, where more are ready than fit side by "
        "side; worth it where a training is not much longer than the start (about half a minute). With zero_stage 3 "
        "their weights add up: DeepSpeed keeps them",
    )

    @model_validator(mode="after")
    def _kernels_for_a_gpu(self) -> TrainRuntime:
        if self.fused_kernels and not self.gpus_per_worker:
            raise ValueError("fused_kernels run on GPUs: set gpus_per_worker, or leave them off")
        return self


class Runtime(Section):
    """Where and how, never what: nothing here changes an artifact's name."""

    store: str = "runs"
    ray_address: str | None = Field(None, description="null: RAY_ADDRESS, else a local Ray of this process")
    local_cpus: Count | None = Field(None, description="logical CPUs of a local Ray; null: max(4, cores)")
    parallel_stages: Count = 2
    teacher: Pool = Pool()
    student: Pool = Pool()
    train: TrainRuntime = TrainRuntime()
    colocate: tuple[RoleName, ...] = Field(
        (), description="roles whose engines take turns on the same GPUs; those of the others are up together"
    )
    track: Track = Track()
    engine_tries: Count = Field(3, description="times an engine may die of one request before it is quarantined")
    max_quarantined: Annotated[int, Field(ge=0)] = Field(10, description="more requests in quarantine fail the stage")
    stall_seconds: Positive = Field(
        1800, description="generation without a finished block for so long ends its engines, which may hang"
    )
    engine_metrics: bool = Field(False, description="vLLM's own metrics in Ray's Prometheus endpoint, too")
    logs: Literal["text", "json"] = Field(
        "text",
        description="json: standard error gets one JSON object a line, with run, stage and rid, and so do workers",
    )
    verify_engine: bool = Field(True, description="after loading an adapter, check that it acts and log-probs agree")

    @field_validator("colocate")
    @classmethod
    def _who_takes_turns(cls, roles: tuple[RoleName, ...]) -> tuple[RoleName, ...]:
        if roles and sorted(roles) != ["student", "teacher"]:
            raise ValueError("colocate names the roles that take turns: [teacher, student], or nothing")
        return roles

    def turns(self, roles: Sequence[str]) -> list[list[str]]:
        """``roles`` whose engines are up at one time, one turn after another."""
        return [[role] for role in roles] if self.colocate else [list(roles)] if roles else []
