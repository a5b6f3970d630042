"""Progress of the running stages as metrics of Ray, which its nodes serve to Prometheus (there each begins with ``ray_``).

``cluster/grafana/plad_ray.json`` shows them. Their tags are ``run``, ``stage`` and ``unit``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plad_ray.progress import Line

METRICS = {
    "plad_stage_done": "rows, texts or steps that are done",
    "plad_stage_total": "rows, texts or steps in all",
    "plad_stage_per_second": "rows, texts or steps a second since the stage began",
    "plad_stage_eta_seconds": "seconds left at that rate",
    "plad_stage_gpu_hours": "GPUs that the stage keeps busy, times the hours since it began",
    "plad_stage_tokens_per_second": "tokens generated or trained on a second",
    "plad_stage_loss": "training loss",
    "plad_stage_errors": "requests that failed",
    "plad_stage_quarantined": "requests that killed their engine, or that it hung on",
    "plad_stage_cost": "what a teacher behind an API has cost, in the currency of its prices",
}
#: metrics that a stage reports as notes of its progress
NOTES = {
    "tokens_per_s": "plad_stage_tokens_per_second",
    "loss": "plad_stage_loss",
    "errors": "plad_stage_errors",
    "quarantined": "plad_stage_quarantined",
    "cost": "plad_stage_cost",
}


def values(line: Line) -> dict[str, float]:
    """What a stage's newest report says, by metric."""
    known = {
        "plad_stage_done": line.done,
        "plad_stage_total": line.total,
        "plad_stage_per_second": line.rate,
        "plad_stage_eta_seconds": line.eta,
        "plad_stage_gpu_hours": line.gpu_hours,
    }
    noted = {NOTES[note]: value for note, value in line.notes.items() if note in NOTES}
    return {name: float(value) for name, value in {**known, **noted}.items() if value is not None}


def tag(name: str) -> str:
    """``name`` in ASCII, which is all that Ray takes for a tag; a study's stages are called ``distill · seed 0``."""
    return name.replace("·", "-").encode("ascii", "backslashreplace").decode("ascii")


class Exporter:
    """Sets the gauges of this process; without a connected Ray there is nobody to tell."""

    def __init__(self, run: str):
        self.run = run
        self.gauges: dict[str, Any] = {}

    def __call__(self, stage: str, line: Line) -> None:
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        for name, value in values(line).items():
            self._gauge(name).set(value, {"run": tag(self.run), "stage": tag(stage), "unit": line.unit})

    def _gauge(self, name: str) -> Any:
        if name not in self.gauges:
            from ray.util.metrics import Gauge

            self.gauges[name] = Gauge(name, METRICS[name], tag_keys=("run", "stage", "unit"))
        return self.gauges[name]
