"""``plad report``: the page of one finished run or study, or of two runs compared."""

from __future__ import annotations

from pathlib import Path

from plad_ray.artifacts import Artifact
from plad_ray.errors import PladError
from plad_ray.report import difference, difference_page, html, markdown
from plad_ray.report.collect import collect
from plad_ray.report.difference import Run
from plad_ray.report.runs import find, find_study, is_study
from plad_ray.stages import Job


def write(runs: list[str], root: str, out: Path, study: str | None = None) -> list[Path]:
    """Write ``out`` (.html) and its Markdown twin beside it, of a study also the twin's figures; returns all of them. Raises
    PladError for a run or study that is not finished.

    ``runs``: one or two, each as ``runs.find`` takes it, with ``root`` as the store of those given by name. With ``study``,
    the name of a study, one as ``runs.find_study`` takes it.
    """
    if len(runs) > 2:
        raise PladError(f"plad report takes one run or two, not {len(runs)}: {', '.join(runs)}")
    if out.suffix != ".html":
        raise PladError(f"--out {out}: give a name that ends in .html; the Markdown twin is written beside it")
    found = [find_study(study, run, root) if study else find(run, root) for run in runs]
    if len(found) == 1:
        pages = _study(found[0], out.stem) if is_study(found[0]) else _run(found[0], out.stem)
    else:
        pages = _two(runs, found, out.stem)
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = {out.with_name(name): text for name, text in pages.items()}
    for path, text in paths.items():
        path.write_text(text, encoding="utf-8")
    return list(paths)


def _run(report: Artifact, name: str) -> dict[str, str]:
    from plad_ray.config import Runtime

    page = collect(Job("report", report.manifest["config"], Run.of(report).inputs, report, Runtime()))
    return {f"{name}.html": html.render(page), f"{name}.md": markdown.render(page)}


def _study(made: Artifact, name: str) -> dict[str, str]:
    from plad_ray.study.stage import pages, read

    return pages(read(made), made.store, name, f"{name}-")


def _two(given: list[str], found: list[Artifact], name: str) -> dict[str, str]:
    if studies := [run for run, artifact in zip(given, found, strict=True) if is_study(artifact)]:
        raise PladError(
            f"{' and '.join(studies)}: two runs can be compared, studies cannot; give one for its page (arms and seeds "
            "are compared within one)"
        )
    if found[0].path == found[1].path:
        raise PladError(f"{given[0]} and {given[1]} are the same run ({found[0].path}); give two different ones")
    compared = difference.compare(*_labelled([Run.of(report) for report in found]))
    return {f"{name}.html": difference_page.html(compared), f"{name}.md": difference_page.markdown(compared)}


def _labelled(runs: list[Run]) -> list[Run]:
    """Two runs of one name are told apart by the digests of their reports."""
    if runs[0].label != runs[1].label:
        return runs
    return [Run.of(run.artifact, f"{run.label} ({run.artifact.name.rpartition('-')[2][:6]})") for run in runs]
