"""The report stage."""

from __future__ import annotations

from plad_ray.report import html, markdown
from plad_ray.report.collect import collect
from plad_ray.stages import Job, Outcome


def run(job: Job) -> Outcome:
    """Stage: ``files/report.html`` and ``files/report.md``.

    Inputs: ``evaluation``, ``prompts``, ``responses``, ``eval_responses``, ``pairs/<arm>``, ``train/<arm>``, and where
    there are any ``sft/teacher``, ``sft/student``, ``scores``, ``eval_scores``.
    """
    page = collect(job)
    job.out.store.write_bytes(job.out.file("files/report.html"), html.render(page).encode())
    job.out.store.write_bytes(job.out.file("files/report.md"), markdown.render(page).encode())
    return Outcome(metrics={"sentences": [sentence.text for sentence in page.sentences]})
