"""Finding the finished runs that a page is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment, load, parse
from plad_ray.errors import PladError


def find(run: str, root: str) -> Artifact:
    """The report artifact of ``run``: an experiment file, the name of a report artifact, or the name of an experiment (its
    newest run) in the store ``root``. Raises PladError when there is no such finished run."""
    if run.endswith((".yaml", ".yml")):
        from plad_ray.pipeline import plan

        exp = load(run)
        report = plan(exp).report.artifact(Store(exp.runtime.store))
        if not report.finished:
            raise PladError(f"{run}: not finished ({report.path} is not there); run `plad run {run}` first")
        return report
    store = Store(root)
    reports = [artifact for artifact in _reports(store) if artifact.finished]
    named = [a for a in reports if run in (a.name, a.manifest["config"]["name"])]
    if not named:
        known = sorted({a.manifest["config"]["name"] for a in reports})
        raise PladError(
            f"{run}: neither an experiment file (.yaml) nor a finished run in {store.root}; runs there: "
            f"{', '.join(known) or 'none'}; another store is given by --store"
        )
    return max(named, key=lambda artifact: artifact.manifest.get("started", ""))


def experiment(report: Artifact) -> Experiment:
    """The settings that the run was made with, defaults included (without ``runtime`` and ``merge``)."""
    recorded: dict[str, Any] = report.manifest["config"]["experiment"]
    return parse(recorded, f"settings recorded in {report.path}")


def _reports(store: Store) -> list[Artifact]:
    entries = store.fs.get_file_info(pafs.FileSelector(store.base, allow_not_found=True))
    return [Artifact(store, Path(e.path).name) for e in entries if Path(e.path).name.startswith("report-")]
