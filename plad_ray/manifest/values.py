"""The values file of a manifest: what a platform engineer decides. Image, Ray version and experiment are said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from plad_ray.config.base import Count, Section, explain
from plad_ray.config.loading import apply_override
from plad_ray.errors import PladError

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", description="a Kubernetes name")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(Mi|Gi|Ti)$", description="bytes, e.g. 64Gi")]


class Image(Section):
    """The tag is not said here: it is made of the versions of plad_ray and Ray (``make image`` builds the same)."""

    repository: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._:/-]*$")]
    variant: Literal["cpu", "gpu"] = "gpu"
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    pull_secrets: tuple[Name, ...] = ()


class S3(Section):
    """An object store; its credentials come from ``service_account`` or ``secrets``."""

    uri: Annotated[str, Field(pattern=r"^(s3|gs)://[^/?]+(/|$)")]


class Claim(Section):
    """A volume that every pod can write (ReadWriteMany)."""

    claim: Name
    size: Quantity | None = Field(None, description="make the claim; null: it is there already")
    storage_class: str | None = None
    uri: Literal["/store"] = "/store"


class SecretKey(Section):
    """Where a secret lies; its value is never here."""

    name: Name = Field(description="of the Kubernetes Secret")
    key: str


class Node(Section):
    """Resources of one pod; requests equal limits."""

    cpus: Count
    memory: Quantity
    disk: Quantity = Field("50Gi", description="ephemeral storage: model cache, spilled objects, logs")
    node_selector: dict[str, str] = Field({}, description="labels of the nodes; a must with accelerator")
    tolerations: tuple[dict[str, str], ...] = ()


class Group(Node):
    """Worker pods of one kind."""

    gpus: Annotated[int, Field(ge=0)] = 0
    accelerator: str | None = Field(None, description="what runtime.<role>.accelerator_type calls it, e.g. H100")
    shm: Quantity = Field("8Gi", description="/dev/shm, part of memory: Ray's object store and NCCL")
    replicas: tuple[Annotated[int, Field(ge=0)], Count] = Field(description="least and most pods")
    spot: bool = False

    @model_validator(mode="after")
    def _least_and_most(self) -> Group:
        if self.replicas[0] > self.replicas[1]:
            raise ValueError(f"replicas {list(self.replicas)}: the least number of pods comes first")
        if self.accelerator is not None and not self.gpus:
            raise ValueError("accelerator is set and gpus is 0; set gpus, or leave accelerator out")
        return self


class Values(Section):
    name: Name
    namespace: Name = "default"
    kind: Literal["RayJob", "RayCluster"] = Field("RayJob", description="RayCluster: to submit to, it stays")
    image: Image
    experiment: str = Field(description="the experiment file, relative to this one")
    overrides: tuple[str, ...] = Field((), description="a.b=c, as of `plad run`")
    store: S3 | Claim
    queue: Name | None = Field(None, description="Kueue LocalQueue: all pods at once, fixed numbers, no autoscaler")
    secrets: dict[Variable, SecretKey] = Field({}, description="environment variables of every Ray pod")
    env: dict[Variable, str] = Field({}, description="further environment variables; nothing secret")
    service_account: Name | None = Field(None, description="for access to the object store without keys")
    operator_namespace: Name = Field("kuberay-operator", description="from where KubeRay reaches the head")
    monitoring_namespace: Name | None = Field(None, description="from where Prometheus scrapes Ray's metrics")
    egress_ports: tuple[Count, ...] = Field((443, 6443), description="object store, model hub, Kubernetes API")
    spot_taints: tuple[str, ...] = ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "spot")
    retries: Annotated[int, Field(ge=0)] = Field(2, description="new clusters after a failure; each resumes")
    keep_seconds: Count = Field(600, description="a finished job's pods stay so long, for their logs")
    idle_seconds: Count = Field(120, description="the autoscaler takes an idle pod away after so long")
    head: Node
    groups: Annotated[dict[Name, Group], Field(min_length=1, max_length=6)]


def load(path: Path, overrides: tuple[str, ...] = ()) -> Values:
    """Read a values file and lay dotted ``a.b=c`` overrides over it. Raises PladError with every problem."""
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PladError(f"{path}: not a readable values file ({error})") from None
    if not isinstance(raw, dict):
        raise PladError(f"{path}: a values file is a mapping (name, image, experiment, store, head, groups, …)")
    for override in overrides:
        apply_override(raw, override)
    try:
        return Values.model_validate(raw)
    except ValidationError as error:
        raise PladError(f"{path}:\n" + "\n".join(explain(e, Values) for e in error.errors())) from None
