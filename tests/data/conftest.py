"""Run the data stages as the pipeline does: identity, lease, conservation, manifest."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Data, Runtime
from plad_ray.data import imports, prepare
from plad_ray.data.identity import identity
from plad_ray.stages import Job, Stage, run_stage


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON lines (gzip by name) and return the path."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> str:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return write


def _run(stage: Stage, inputs: dict[str, Artifact], store: Store) -> Artifact:
    job = Job(stage.name, stage.config, inputs, stage.artifact(store), Runtime())
    run_stage(stage, job)
    return job.out


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Artifact]:
    """Run the prompts stage on a data section (keyword arguments); its finished artifact."""
    numbers = itertools.count()

    def run(seed: int = 0, **data: Any) -> Artifact:
        section = Data.model_validate(data)
        config = {"data": section.model_dump(mode="json"), "seed": seed, "source": identity(section)}
        return _run(Stage("prompts", prepare.run, config), {}, Store(str(tmp_path / f"store{next(numbers)}")))

    return run


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., Artifact]:
    """Run ``run_responses`` or ``run_pairs`` on a file for a finished prompts artifact."""
    numbers = itertools.count()

    def run(kind: str, path: str, prompts: Artifact) -> Artifact:
        stage = Stage("imported", getattr(imports, kind), {"path": path, "source": "-"})
        return _run(stage, {"prompts": prompts}, Store(str(tmp_path / f"imports{next(numbers)}")))

    return run
