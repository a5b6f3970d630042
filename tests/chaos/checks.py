"""What must hold after a kill, by assertion: each request one row, training as if nothing had been, nothing left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

import torch
from safetensors.torch import load_file

from plad_ray.artifacts import Artifact, Store
from tests.machines import Machines, title_of

#: what a resumed training run may differ by from an unbroken one, in every loss and every weight
TOLERANCE = 1e-6
#: Ray's own processes, which outlive what used them and hold no CPU
SYSTEM = (
    "IDLE",
    "DashboardAgent",
    "RuntimeEnvAgent",
    "ActorLocationTracker",
    "JobSupervisor",
    "_AutoscalingCoordinatorActor",
    "_StatsActor",
    "_TelemetryAgent",
)
#: seconds that Ray has to give back what a finished run held
SETTLE = 60.0


def check_rows(out: Artifact, total: int) -> None:
    """Each of ``total`` requests has exactly one row."""
    rids = out.table(["rid"]).column("rid").to_pylist()
    assert len(rids) == len(set(rids)) == total, (
        f"{len(rids)} rows of {len(set(rids))} requests where {total} were made"
    )
    assert out.table(folder="errors").num_rows == 0
    assert out.manifest["rows"] == {"in": total, "out": total, "dropped": {}}


def check_training(out: Artifact, unbroken: Artifact) -> None:
    """The same steps, losses and weights."""
    got, expected = metrics(out), metrics(unbroken)
    assert [line["step"] for line in got] == [line["step"] for line in expected], "a step twice, or none"
    for name in ("loss", "grad_norm", "num_tokens"):
        columns = (torch.tensor([line[name] for line in lines], dtype=torch.float64) for lines in (got, expected))
        torch.testing.assert_close(*columns, rtol=TOLERANCE, atol=TOLERANCE)
    ours, theirs = (load_file(a.local_folder() / "adapter_model.safetensors") for a in (out, unbroken))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def metrics(out: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out.local_folder() / "metrics.jsonl").read_text().splitlines()]


def check_store(store: Store) -> None:
    """No lease is held, and no work is left behind."""
    left: Iterable[str] = (n for n in store.files("") if n.endswith("/lease.json") or "work" in n.split("/")[1:-1])
    assert not [*left], [*left]


def check_cluster(machines: Machines) -> None:
    """Of a run that is over, once Ray has had its time, no process, no CPU and no placement group is held."""
    deadline = time.monotonic() + SETTLE
    while (left := held(machines)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, f"still held: {', '.join(left)}"


def held(machines: Machines) -> list[str]:
    import ray
    from ray.util import placement_group_table

    titles = [title_of(p) for machine in (machines.head, *machines.workers) for p in machine.workers("^ray::")]
    busy = [title for title in titles if not title.removeprefix("ray::").startswith(SYSTEM)]
    free, there = (r.get("CPU", 0.0) for r in (ray.available_resources(), ray.cluster_resources()))
    groups = [g["placement_group_id"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
    return [*busy, *([f"{there - free:g} CPUs"] if free < there else []), *(f"placement group {g}" for g in groups)]
