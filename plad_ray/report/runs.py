"""Finding the finished runs and studies that a page is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment, load, load_study, parse
from plad_ray.config.loading import read
from plad_ray.errors import PladError

REPORT, STUDY = "report-", "study-"


def find(run: str, root: str) -> Artifact:
    """The report artifact of ``run``: an experiment file, the name of a report artifact, or the name of an experiment (its
    newest run) in the store ``root``; or the study artifact of that name. Raises PladError when there is no such finished
    one."""
    if _is_file(run):
        from plad_ray.pipeline import plan

        if "experiment" in read(Path(run)):
            raise PladError(f"{run} is a study file: name the study by --study, as `plad study NAME {run}` does")
        exp = load(run)
        report = plan(exp).report.artifact(Store(exp.runtime.store))
        if not report.finished:
            raise PladError(f"{run}: not finished ({report.path} is not there); run `plad run {run}` first")
        return report
    store = Store(root)
    reports, studies = _finished(store, REPORT), _finished(store, STUDY)
    named = [a for a in reports if run in (a.name, _name(a))] or [a for a in studies if run == a.name]
    if not named:
        known = sorted({_name(a) for a in reports})
        others = sorted({f"{_name(a)} (--study {a.manifest['config']['study']})" for a in studies})
        raise PladError(
            f"{run}: neither an experiment file (.yaml) nor a finished run in {store.root}; runs there: "
            f"{', '.join(known) or 'none'}; studies: {', '.join(others) or 'none'}; another store is given by --store"
        )
    return _newest(named)


def find_study(study: str, of: str, root: str) -> Artifact:
    """The artifact of ``study`` (as ``plad study`` names it) made of ``of``: an experiment or study file, the artifact's own
    name, or the name of an experiment (its newest such study) in the store ``root``. Raises PladError when there is no such
    finished study."""
    from plad_ray.study import find as kind_of

    kind = kind_of(study)
    if _is_file(of):
        exp, settings = load_study(study, kind.settings, of)
        store = Store(exp.runtime.store)
        last = kind.plan(exp, settings, store).last
        if last is None or not last.artifact(store).finished:
            where = f"in {store.root}" if last is None else f"({last.artifact(store).path} is not there)"
            raise PladError(f"{of}: study {study} is not finished {where}; run `plad study {study} {of}` first")
        return last.artifact(store)
    store = Store(root)
    studies = [a for a in _finished(store, STUDY) if a.manifest["config"]["study"] == study]
    named = [a for a in studies if of in (a.name, _name(a))]
    if not named:
        known = sorted({_name(a) for a in studies})
        raise PladError(
            f"{of}: neither a study file (.yaml) nor an experiment with a finished study {study} in {store.root}; such "
            f"experiments there: {', '.join(known) or 'none'}; another store is given by --store"
        )
    return _newest(named)


def is_study(artifact: Artifact) -> bool:
    return artifact.name.startswith(STUDY)


def experiment(report: Artifact) -> Experiment:
    """The settings that the run was made with, defaults included (without ``runtime`` and ``merge``)."""
    recorded: dict[str, Any] = report.manifest["config"]["experiment"]
    return parse(recorded, f"settings recorded in {report.path}")


def _is_file(given: str) -> bool:
    return given.endswith((".yaml", ".yml"))


def _name(artifact: Artifact) -> str:
    """Of its experiment."""
    name: str = artifact.manifest["config"]["name"]
    return name


def _newest(artifacts: list[Artifact]) -> Artifact:
    return max(artifacts, key=lambda artifact: artifact.manifest.get("started", ""))


def _finished(store: Store, prefix: str) -> list[Artifact]:
    entries = store.fs.get_file_info(pafs.FileSelector(store.base, allow_not_found=True))
    names = [Path(entry.path).name for entry in entries]
    found = [Artifact(store, name) for name in names if name.startswith(prefix)]
    return [artifact for artifact in found if artifact.finished]
