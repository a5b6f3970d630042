"""The stage behind every study: its result as JSON, as a page, and as a Markdown twin with drawings."""

from __future__ import annotations

from typing import Any

import yaml

from plad_ray.report.study import draw, render_study
from plad_ray.stages import Job, Outcome
from plad_ray.study import find, markdown
from plad_ray.study.result import StudyResult


def run(job: Job) -> Outcome:
    """Stage: ``files/result.json`` (a ``StudyResult``), ``files/study.html``, ``files/study.md`` and its figures as SVG."""
    study = find(job.config["study"])
    result = StudyResult.model_validate({**dict(study.result(job)), **_facts(job, study)})
    write = job.out.store.write_bytes
    write(job.out.file("files/result.json"), result.model_dump_json(indent=1).encode())
    write(job.out.file("files/study.html"), render_study(result, job.out.store).encode())
    write(job.out.file("files/study.md"), markdown.render(result).encode())
    for figure in result.drawn:
        write(job.out.file(f"files/{figure.key}.svg"), draw(figure).encode())
    for name, content in result.chosen.items():
        write(job.out.file(f"files/{name}"), content.encode())
    return Outcome(metrics={"summary": list(result.summary)})


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


def read(job_out: Any) -> StudyResult:
    """The result of a finished study's artifact."""
    return StudyResult.model_validate_json(job_out.store.read_bytes(job_out.file("files/result.json")))
