"""Every artifact behind a page: what it was made from, by which settings, at what cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from plad_ray.artifacts import Artifact


@dataclass(frozen=True)
class Step:
    """One artifact. ``workers`` and ``gpus`` are those it kept busy; ``tokens`` were generated or trained on, ``read``
    are the prompts'; ``inputs`` are names of artifacts by role; ``settings`` is YAML; ``seed`` tells apart what a stage
    made in several runs."""

    artifact: str
    stage: str
    digest: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    started: str
    seconds: float
    workers: float
    gpus: float
    tokens: int | None
    read: int | None
    inputs: dict[str, str]
    settings: str
    seed: int | None = None

    @property
    def made_from(self) -> dict[str, str]:
        """Its role by input, the first where an artifact has several."""
        found: dict[str, str] = {}
        for role, name in self.inputs.items():
            found.setdefault(name, role)
        return found

    @property
    def worker_hours(self) -> float:
        return self.workers * self.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600


def lineage(artifacts: Iterable[Artifact]) -> list[Step]:
    """Every artifact behind ``artifacts``, inputs first, each once."""
    return [_step(name, manifest) for name, manifest in manifests(artifacts).items()]


def manifests(artifacts: Iterable[Artifact]) -> dict[str, dict[str, Any]]:
    """By artifact name, the manifests of ``artifacts`` and of all behind them, inputs first."""
    found: dict[str, dict[str, Any]] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.name in found:
            return
        manifest = artifact.manifest
        for _, parent in sorted(manifest["inputs"].items()):
            visit(Artifact(artifact.store, parent))
        found[artifact.name] = manifest

    for artifact in artifacts:
        visit(artifact)
    return found


def _step(name: str, manifest: Mapping[str, Any]) -> Step:
    rows, metrics = manifest.get("rows", {}), manifest["metrics"]
    workers, gpus = _busy(manifest)
    return Step(
        artifact=name,
        stage=manifest["name"],
        digest=name.removeprefix(f"{manifest['name']}-"),
        rows_in=rows.get("in", 0),
        rows_out=rows.get("out", 0),
        dropped=rows.get("dropped", {}),
        started=manifest.get("started", ""),
        seconds=manifest.get("seconds", 0),
        workers=workers,
        gpus=gpus,
        tokens=_total(metrics.get("tokens", metrics.get("num_tokens"))),
        read=_total(metrics.get("prompt_tokens")),
        inputs=dict(sorted(manifest["inputs"].items())),
        settings=yaml.safe_dump(manifest.get("identity", {}), sort_keys=False, allow_unicode=True),
        seed=manifest.get("config", {}).get("seed"),
    )


def _busy(manifest: Mapping[str, Any]) -> tuple[float, float]:
    """Workers and GPUs that a stage kept busy: train workers, engine replicas, else the one process that ran it."""
    config, runtime = manifest.get("config", {}), manifest.get("runtime", {})
    if "training" in config and "train" in runtime:
        train = runtime["train"]
        return train["workers"], train["workers"] * train["gpus_per_worker"]
    if "policies" in config and runtime:
        pools = [runtime[role] for role in sorted({policy["role"] for policy in config["policies"].values()})]
        return sum(pool["replicas"] for pool in pools), sum(pool["replicas"] * pool["gpus"] for pool in pools)
    return 1, 0


def _total(tokens: Any) -> int | None:
    if isinstance(tokens, Mapping):
        return int(sum(tokens.values()))
    return None if tokens is None else int(tokens)
