"""Any study's result as a page in the look of the report."""

from __future__ import annotations

import re
from pathlib import Path

from plad_ray.artifacts import Store
from plad_ray.report.study import render_study
from plad_ray.study import result
from tests.report.made_up import world
from tests.report.test_browser import browser, opened  # noqa: F401
from tests.report.test_report import EVIL


def made_up(artifacts: dict[str, str], evil: str = ""):
    """A result with every kind of cell, axis, series and line."""
    columns = [
        result.Column(key="method", label="method", unit="text"),
        result.Column(key="rate", label="win rate", unit="percent"),
        result.Column(key="lift", label="lift", unit="points"),
        result.Column(key="prompts", label="prompts", unit="count"),
        result.Column(key="tau", label="τ", digits=3),
    ]
    lift = result.Interval(mean=-0.0213, low=-0.041, high=-0.0012, p=0.0004, adjusted=True)
    rows = [
        ("plad" + evil, result.Interval(mean=0.613, low=0.58, high=0.64), lift, 12800, 0.1234),
        ("sft", None, None, 10, None),
    ]
    share = result.Axis(label="share of the data", unit="percent", log=True)
    rate = result.Axis(label="win rate against the references", unit="percent")
    xs, ys = (0.05, 0.2, 1.0), (0.3, 0.42, 0.55)
    whiskers = {"low": (0.25, 0.4, 0.5), "high": (0.35, 0.45, 0.6)}
    figures = [
        result.Figure(
            key="scaling", title="Scaling", x=share, y=rate, note="A note.",
            series=[
                result.Series(name="plad" + evil, kind="points", x=xs, y=ys, notes=("a", "b", "c"), **whiskers),
                result.Series(name="fit", kind="line", x=xs, y=ys, group="plad" + evil, **whiskers),
                result.Series(name="spread", kind="band", x=xs, y=ys, **whiskers),
            ],
            lines=[result.Line(label="teacher", y=0.6), result.Line(label="here", x=0.5)],
        ),
        result.Figure(
            key="bars", title="Bars", x=result.Axis(label="words", categories=("short", "long")), y=rate,
            series=[result.Series(name=n, kind="bars", x=(0, 1), y=(0.1, 0.2), low=(0, 0.1), high=(0.2, 0.3)) for n in "ab"],
        ),
        result.Figure(
            key="reliability", title="Reliability", x=result.Axis(label="p"), y=result.Axis(label="share"),
            series=[result.Series(name="before", x=(0.2, 0.8), y=(0.4, 0.6))], lines=[result.Line(label="", diagonal=True)],
        ),
    ]  # fmt: skip
    return result.StudyResult(
        study="scaling", name="demo", title="Scaling" + evil, paper="Figure 4", summary=("One sentence." + evil,),
        warnings=("Mind this.",), tables=(result.Table(key="t", title="A table", note="n", columns=columns, rows=rows),),
        figures=figures, settings={"shares": [0.05, 1.0]}, experiment="name: demo\n", chosen={"best.yaml": "name: best\n"},
        artifacts=artifacts,
    )  # fmt: skip


def test_cells_are_written_in_their_units() -> None:
    page = render_study(made_up({"evaluation": "evaluate-0"}))
    cells = [re.sub(r"<[^>]+>", " ", cell).split() for cell in re.findall(r"<td.*?</td>", page, re.DOTALL)]
    assert ["61.3", "%", "[58.0,", "64.0]"] in cells and ["12,800"] in cells and ["0.123"] in cells
    assert ["-2.1", "[-4.1,", "-0.1]", "p", "<", "0.001", "(corrected)"] in [
        [word.replace("&lt;", "<") for word in cell] for cell in cells
    ]
    assert 'class="down">-2.1' in page and page.count("–</td>") == 3
    assert "Figure 4 of PLaD" in page and "best.yaml" in page


def test_with_a_store_the_whole_lineage_is_there(tmp_path) -> None:
    made = world(tmp_path, 8)
    page = render_study(made_up({"evaluation of seed 0": made.inputs["evaluation"].name}), Store(str(tmp_path)))
    for key in ("prompts", "responses", "eval_responses", "scores", "evaluation"):
        assert f'<tr id="{made.inputs[key].name}">' in page
    assert 'class="graph"' in page and "Worker-hours" in page


#: labels that begin left of their drawing or end right of it
WITHIN = """[...document.querySelectorAll('figure svg')].flatMap(drawing => {
  const place = drawing.getBoundingClientRect();
  return [...drawing.querySelectorAll('text')].filter(text => {
    const own = text.getBoundingClientRect();
    return own.width && (own.left < place.left - 1 || own.right > place.right + 1);
  }).map(text => text.textContent);
})"""


def test_a_browser_draws_it_and_runs_no_text(browser, tmp_path) -> None:  # noqa: F811
    file = Path(tmp_path) / "study.html"
    file.write_text(render_study(made_up({"evaluation": "evaluate-0"}, EVIL)), encoding="utf-8")
    with opened(browser, file) as page:
        assert page.locator("svg").count() == 3 and page.evaluate("window.hacked") is None
        assert page.locator("svg circle.mark").count() == 3 + 2 and page.locator("svg rect.mark").count() == 4
        assert page.evaluate(WITHIN) == [], "no label leaves its drawing"
        page.locator("svg circle.mark").nth(1).hover()
        tip = page.locator("#tip").inner_text().split("\n")
        assert tip[1:] == ["share of the data, % 20", "42 [40, 45]", "b"]
        assert {t.text_content() for t in page.locator("svg").nth(1).locator("text").all()} >= {
            "short",
            "long",
            "0",
            "10",
        }
