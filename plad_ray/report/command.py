"""``plad report``: the page of one finished run, or of two compared."""

from __future__ import annotations

from pathlib import Path

from plad_ray.errors import PladError
from plad_ray.report import difference, difference_page, html, markdown
from plad_ray.report.collect import collect
from plad_ray.report.difference import Run
from plad_ray.report.runs import find
from plad_ray.stages import Job


def write(runs: list[str], root: str, out: Path) -> list[Path]:
    """Write ``out`` (.html) and its Markdown twin beside it; returns both. Raises PladError for a run that is not finished.

    ``runs``: one or two, each as ``runs.find`` takes it, with ``root`` as the store of those given by name.
    """
    if len(runs) > 2:
        raise PladError(f"plad report takes one run or two, not {len(runs)}: {', '.join(runs)}")
    if out.suffix != ".html":
        raise PladError(f"--out {out}: give a name that ends in .html; the Markdown twin is written beside it")
    reports = [find(run, root) for run in runs]
    if len(reports) == 1:
        from plad_ray.config import Runtime

        manifest = reports[0].manifest
        inputs = Run.of(reports[0]).inputs
        page = collect(Job("report", manifest["config"], inputs, reports[0], Runtime()))
        pages = html.render(page), markdown.render(page)
    else:
        if reports[0].path == reports[1].path:
            raise PladError(f"{runs[0]} and {runs[1]} are the same run ({reports[0].path}); give two different ones")
        found = difference.compare(*_labelled([Run.of(report) for report in reports]))
        pages = difference_page.html(found), difference_page.markdown(found)
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = [out, out.with_suffix(".md")]
    for path, text in zip(paths, pages, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def _labelled(runs: list[Run]) -> list[Run]:
    """Two runs of one name are told apart by the digests of their reports."""
    if runs[0].label != runs[1].label:
        return runs
    return [Run.of(run.artifact, f"{run.label} ({run.artifact.name.rpartition('-')[2][:6]})") for run in runs]
