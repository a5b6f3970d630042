"""The stage behind every study: its result as JSON, as a page, and as a Markdown twin with drawings."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

from plad_ray.artifacts import Artifact, Store
from plad_ray.errors import PladError
from plad_ray.report.sources import Sources
from plad_ray.report.study import draw, render_study
from plad_ray.stages import Job, Outcome
from plad_ray.study import find, markdown
from plad_ray.study.result import StudyResult


def run(job: Job) -> Outcome:
    """Stage: ``files/result.json`` (a ``StudyResult``), ``files/study.html``, ``files/study.md`` and its figures as SVG."""
    study = find(job.config["study"])
    result = StudyResult.model_validate({**dict(study.result(job)), **_facts(job, study)})
    files = {"result.json": result.model_dump_json(indent=1), **pages(result, job.out.store), **result.chosen}
    for name, content in files.items():
        job.out.store.write_bytes(job.out.file(f"files/{name}"), content.encode())
    return Outcome(metrics={"summary": list(result.summary)})


def pages(result: StudyResult, store: Store, name: str = "study", figures: str = "") -> dict[str, str]:
    """``<name>.html``, ``<name>.md`` and the SVG files that the latter shows, whose names begin with ``figures``; by file
    name. ``store``: where the result's artifacts lie."""
    sources = Sources.of(result, store)
    return {
        f"{name}.html": render_study(result, sources),
        f"{name}.md": markdown.render(result, sources, figures),
        **{f"{figures}{figure.key}.svg": draw(figure) for figure in result.drawn},
    }


def _facts(job: Job, study: Any) -> dict[str, Any]:
    """What is the same for every study."""
    return {
        "study": study.name,
        "title": study.title,
        "paper": study.paper,
        "name": job.config["name"],
        "settings": job.config["settings"],
        "experiment": yaml.safe_dump(job.config["experiment"], sort_keys=False, allow_unicode=True),
        "artifacts": {key: artifact.name for key, artifact in job.inputs.items()},
    }


def read(made: Artifact) -> StudyResult:
    """The result of a finished study's artifact. Raises PladError where other code than this wrote it in another form."""
    try:
        return StudyResult.model_validate_json(made.store.read_bytes(made.file("files/result.json")))
    except ValidationError as error:
        raise PladError(
            f"{made.path}: result.json is not of this version of plad_ray ({error.errors()[0]['msg']}); give `plad study "
            f"{made.manifest['config']['study']}` again, which reuses all that lies behind it"
        ) from error
