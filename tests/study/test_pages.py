"""A result in the terminal, in Markdown and as drawings: numbers as their units say, hostile text shown as it is."""

from __future__ import annotations

from io import StringIO
from xml.etree import ElementTree

import pytest
import yaml
from rich.console import Console

from plad_ray.report import command
from plad_ray.report.study import draw
from plad_ray.study import markdown, shown, terminal
from plad_ray.study.result import Axis, Column, Figure, Interval, Line, Series, StudyResult, Table

EVIL = "<script>alert(1)</script> | [red]x[/red] \x1b[31m"


def result() -> StudyResult:
    columns = (Column(key="arm", label="", unit="text"), Column(key="win", label="win", unit="percent"))
    return StudyResult(
        study="compare",
        name="n",
        title="Compared",
        summary=(EVIL,),
        warnings=("beware",),
        tables=(Table(key="t", title="T", columns=columns, rows=((EVIL, Interval(mean=0.5, low=0.25, high=1)),)),),
        figures=(figure("points"),),
    )


def figure(kind: str) -> Figure:
    ends = {"low": (0.1, 0.2), "high": (0.3, 0.5)}
    return Figure(
        key="f",
        title="F",
        x=Axis(label="n", categories=("a", "b")),
        y=Axis(label="win", unit="percent"),
        series=(Series(name="s", kind=kind, x=(0, 1), y=(0.2, 0.3), **ends),),
        lines=(Line(label="even", y=0.5), Line(label="same", diagonal=True), Line(label="here", x=1)),
    )


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (Interval(mean=0.6131, low=0.58, high=0.644), "percent", "61.3 % [58.0, 64.4]"),
        (Interval(mean=0.013, low=-0.002, high=0.028), "points", "+1.3 [-0.2, +2.8]"),
        (0.0004, "p", "<0.001"),
        (0.01234, "p", "0.012"),
        (12345, "count", "12,345"),
        (1.25, "number", "1.2"),
        (None, "percent", ""),
        ("text", "percent", "text"),
    ],
)
def test_cells(value, unit, text):
    assert shown.cell(value, Column(key="x", label="", unit=unit)) == text


def test_text_is_shown_not_interpreted():
    page = markdown.render(result())
    assert "<" not in page.replace("\\<", "") and "\x1b" not in page and "50.0 % \\[25.0, 100.0\\]" in page
    console = Console(file=StringIO(), width=200)
    console.print(terminal.render(result()))
    assert "[red]x[/red]" in console.file.getvalue() and "\x1b" not in console.file.getvalue()


@pytest.mark.parametrize("kind", ["points", "line", "line+points", "bars", "band"])
def test_figures_are_drawn_the_same_each_time(kind):
    drawn = draw(figure(kind))
    assert ElementTree.fromstring(drawn).tag.endswith("svg") and drawn == draw(figure(kind))
    assert {"F", "a", "b", "even", "here"} <= {
        e.text for e in ElementTree.fromstring(drawn).iter() if e.tag.endswith("text")
    }


def test_a_study_is_rendered_again_by_its_file(here, tmp_path):
    exp, settings = here.experiment(), {"width": 2, "minimum": 1, "seeds": [1, 0]}
    found, store, last = here.run("length", exp, **settings)
    file, out = tmp_path / "study.yaml", tmp_path / "again.html"
    raw = exp.model_dump(mode="json", exclude_defaults=True)
    file.write_text(yaml.safe_dump({**raw, "study": settings}))
    assert command.write([str(file)], "nowhere", out, "length")[0] == out
    page = out.read_text()
    assert page == store.read_bytes(last.artifact(store).file("files/study.html")).decode()
    assert "of seed 1, spread evenly" in page and "distill</text>" in page and "2 runs, " in page
    for name in found.artifacts.values():
        assert f'<tr id="{name}">' in page
