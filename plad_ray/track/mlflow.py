"""MLflow: one run an artifact, found again by its tag when training resumes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from plad_ray.config import Mlflow
from plad_ray.track.base import Line, Subject

TAG = "plad_ray.artifact"
#: what the server takes in one request
METRICS, PARAMS, VALUE = 1000, 100, 6000


class MlflowTracker:
    """Metrics under TRL's names by step, settings as parameters with dotted names."""

    name = "MLflow"
    errors = (MlflowException,)

    def __init__(self, subject: Subject, settings: Mlflow):
        # its own patience is minutes a request, which training would spend waiting
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.client = MlflowClient(settings.uri)
        found = self.client.get_experiment_by_name(settings.experiment)
        experiment = found.experiment_id if found else self.client.create_experiment(settings.experiment)
        query = f"tags.`{TAG}` = '{subject.artifact}'"
        runs = self.client.search_runs([experiment], query, max_results=1) if subject.start else []
        if runs:
            self.run = runs[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            return
        tags = {TAG: subject.artifact, "plad_ray.store": subject.store}
        self.run = self.client.create_run(experiment, tags=tags, run_name=subject.artifact).info.run_id
        params = [Param(key, str(value)[:VALUE]) for key, value in flat(subject.settings)]
        for start in range(0, len(params), PARAMS):
            self.client.log_batch(self.run, params=params[start : start + PARAMS])

    def log(self, lines: Sequence[Line]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, int(line["step"]))
            for line in lines
            for name, value in line.items()
            if name != "step"
        ]
        for start in range(0, len(metrics), METRICS):
            self.client.log_batch(self.run, metrics=metrics[start : start + METRICS])

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if finished else "FAILED")


def flat(settings: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested mappings."""
    if not isinstance(settings, dict):
        yield at, settings
        return
    for key, value in settings.items():
        yield from flat(value, f"{at}.{key}".lstrip("."))


TRACKER = MlflowTracker
