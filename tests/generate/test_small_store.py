"""A Ray whose object store holds a fraction of what passes through it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plad_ray import cluster
from plad_ray.artifacts import Store
from plad_ray.config import Runtime
from plad_ray.generate import run
from tests.conftest import save_tiny_model
from tests.generate.generate_jobs import make_job, policy, prompt_rows, prompts_artifact
from tests.machines import ROOT

PROMPTS, WORDS = 4000, 4000
ROLES = ("teacher", "student")


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_more_passes_than_the_object_store_holds(tmp_path):
    """Prompts of 16,000 bytes and as many bytes of tokens, for two engines: 250 MB through 80."""
    command = [sys.executable, "-m", "tests.generate.test_small_store", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == [2 * PROMPTS] * 3


def generate(folder: Path) -> list[int]:
    """How many rows there should be, are, and are different ones."""
    cluster.LOCAL_OBJECT_STORE = 80_000_000  # Ray takes no less than 75 MiB
    cluster.connect(Runtime())
    store, model = Store(str(folder / "runs")), save_tiny_model(folder / "model")
    rows = prompt_rows(PROMPTS)
    for i, row in enumerate(rows):
        row["prompt"] = " ".join(f"w{(i + j) % 40}" for j in range(WORDS))
    policies = {role: policy(model, role, max_length=WORDS + 16) for role in ROLES}
    pools = {role: {"batch_size": 64, "engine_kwargs": {"seconds": 0.2}} for role in ROLES}
    job = make_job(store, policies, {"prompts": prompts_artifact(store, rows)}, pools)
    outcome = run.run(job)
    rids = [row["rid"] for row in job.out.rows(["rid"])]
    return [outcome.rows_out, len(rids), len(set(rids))]


if __name__ == "__main__":
    print(json.dumps(generate(Path(sys.argv[1]))))
