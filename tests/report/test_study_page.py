"""Any study's result as a page in the look of the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plad_ray.artifacts import Artifact, Store
from plad_ray.cli import app
from plad_ray.report.sources import Sources
from plad_ray.report.study import render_study
from plad_ray.report.study import shown as shown_cell
from plad_ray.study import markdown, result, stage
from tests.report.made_up import ROOT, finish, world
from tests.report.test_browser import browser, opened, shown  # noqa: F401
from tests.report.test_report import EVIL
from tests.synthetic import job


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
    made, store = world(tmp_path, 8), Store(str(tmp_path))
    found = made_up({"evaluation of seed 0": made.inputs["evaluation"].name})
    page, text = (render(found, Sources.of(found, store)) for render in (render_study, markdown.render))
    for key in ("prompts", "responses", "eval_responses", "scores", "evaluation"):
        assert f'<tr id="{made.inputs[key].name}">' in page
        assert f"| `{made.inputs[key].name}` |" in text
    assert 'class="graph"' in page and "Worker-hours" in page and "| worker-hours |" in text
    assert "<h2>Samples" not in page and "## Samples" not in text, "no evaluation of a seed"


def study(root: Path, kind: str = "length", tag: str = "0", **more) -> Artifact:
    """A finished study of the experiment ``tiny`` over two seeds, whose runs are made up."""
    runs = {seed: world(root, 40, evil=EVIL, tag=f"{tag}{seed}").inputs["evaluation"] for seed in (3, 1)}
    settings = {"seeds": [3, 1], "width": 10, "minimum": 1}
    config = {"study": kind, "name": "tiny", "settings": settings, "facts": {"arms": ["distilled", "seqkd"]}}
    config |= {"experiment": {"scorer": {"name": "demo"}, "evaluate": {"bootstrap": 200}}}
    made = job(root, f"study-{kind}", config, {f"evaluation/{seed}": run for seed, run in runs.items()})
    return finish(made, stage.run(made), 1.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Artifact:
    return study(tmp_path_factory.mktemp("study"))


def read(artifact: Artifact, name: str) -> str:
    return artifact.store.read_bytes(artifact.file(f"files/{name}")).decode()


def test_samples_are_of_the_first_seed_with_each_arms_change_of_score(made) -> None:
    page, text = read(made, "study.html"), read(made, "study.md")
    assert "40 prompts of seed 3, spread evenly" in page and text.count("| human reference |") == 6
    assert "## Samples of seed 3 (greedy)" in text
    rows = Artifact(made.store, made.manifest["inputs"]["evaluation/3"]).table().to_pylist()
    score = {(r["policy"], r["prompt_id"]): r["score"] for r in rows if r["temperature"] == 0}
    prompts = sorted({prompt for _, prompt in score}, key=lambda prompt: int(prompt[1:]))
    changes = [json.loads(found) for found in re.findall(r"data-changes='(.*?)'", page)]
    assert [c["seqkd"] for c in changes] == [score["seqkd", p] - score["student", p] for p in prompts]
    first = re.search(r"<article.*?</article>", page, re.DOTALL).group(0)
    labels = re.findall(r"<h4>(.*?)<", first)
    assert labels == ["human reference", "teacher", "initial student", "distilled", "seqkd"]
    assert page.count("<script") == 1 and "&lt;/script&gt;&lt;script&gt;window" in first


def test_runs_of_one_seed_stand_beside_each_other_by_name(tmp_path) -> None:
    """As a study of several teachers has them; the initial student's text, which is the same, comes up once."""
    runs = {name: world(tmp_path, 8, tag=name).inputs["evaluation"].name for name in ("weak", "strong")}
    found = made_up({f"evaluation/{name}/{seed}": run for name, run in runs.items() for seed in (5, 6)})
    samples = Sources.of(found, Store(str(tmp_path))).samples
    assert samples.run == "seed 5" and samples.choices == [
        f"{arm}, {name}" for name in runs for arm in ("distilled", "seqkd")
    ]
    assert [text.label for text in samples.shown[0].texts] == [
        "human reference", "teacher, weak", "teacher, strong", "initial student",
        "distilled, weak", "distilled, strong", "seqkd, weak", "seqkd, strong",
    ]  # fmt: skip


@pytest.mark.parametrize("named", [["tiny", "--study", "length"], ["study-length-out"]])
def test_a_finished_study_is_rendered_again(made, tmp_path, named) -> None:
    out = tmp_path / "sub" / "my page.html"
    asked = CliRunner().invoke(app, ["report", *named, "--store", made.store.root, "--out", str(out)])
    assert asked.exit_code == 0, asked.output
    assert asked.output.splitlines()[:2] == [str(out), str(out.with_suffix(".md"))]
    assert out.read_text() == read(made, "study.html")
    plots = re.findall(r"!\[.*?\]\((.*?)\)", out.with_suffix(".md").read_text())
    assert plots and all((out.parent / plot.replace("%20", " ")).read_text().startswith("<svg") for plot in plots)
    assert out.with_suffix(".md").read_text().replace("my%20page-", "") == read(made, "study.md")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny"], "studies: tiny (--study length)"),
        ([str(ROOT / "jobs/studies/length.yaml")], "is a study file: name the study by --study"),
        (["tiny", "--study", "compare"], "such experiments there: none"),
        (["tiny", "--study", "lenght"], "did you mean length"),
        (["tiny", "tiny", "--study", "length"], "two runs can be compared, studies cannot"),
        ([str(ROOT / "jobs/studies/length.yaml"), "--study", "length"], "run `plad study length"),
        ([str(ROOT / "jobs/studies/sweep.yaml"), "--study", "sweep"], "study sweep is not finished in"),
    ],
)
def test_a_study_that_cannot_be_shown_is_one_message(made, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    asked = CliRunner().invoke(app, ["report", *arguments, "--store", made.store.root])
    assert asked.exit_code == 2 and message in asked.stderr


def test_a_result_of_another_version_is_told(tmp_path) -> None:
    made = study(tmp_path)
    made.store.write_json(made.file("files/result.json"), {"study": "length", "gone": 1})
    asked = CliRunner().invoke(app, ["report", made.name, "--store", str(tmp_path), "--out", str(tmp_path / "a.html")])
    assert asked.exit_code == 2 and "not of this version" in asked.stderr and "`plad study length`" in asked.stderr


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


def test_samples_of_a_study_are_filtered_and_its_lists_open(browser, made) -> None:  # noqa: F811
    with opened(browser, Path(made.path) / "files" / "study.html") as page:
        said = page.locator("form.filter output")
        assert shown(page) == 6 and said.inner_text() == "6 of 40 shown" and page.evaluate("window.hacked") is None
        changes = [json.loads(c.get_attribute("data-changes"))["seqkd"] for c in page.locator(".sample").all()]
        page.select_option("select[name=arm]", "seqkd")
        page.select_option("select[name=change]", "up")
        assert f"of {sum(c > 1e-9 for c in changes)} shown" in said.inner_text()
        page.select_option("select[name=change]", "")
        page.fill("input[name=text]", "window.hacked")
        assert shown(page) == 1 and "</script><script>window.hacked" in page.locator(".sample:visible").inner_text()
        page.evaluate("document.querySelectorAll('details').forEach(list => { list.open = false; })")
        box = page.locator("svg.graph a", has_text="evaluate")
        assert "2 runs" in box.inner_html() and not page.locator("table.lineage").is_visible()
        box.click()
        assert page.locator("tr.group", has_text="evaluate · 2 runs").is_visible()
        assert page.url.endswith("#" + box.get_attribute("data-node"))


def test_a_study_page_fits_a_phone_and_paper(browser, made) -> None:  # noqa: F811
    with opened(browser, Path(made.path) / "files" / "study.html") as page:
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 688, "height": 900})  # A4 less its margins
        assert page.evaluate("document.documentElement.scrollWidth") <= 688


def test_a_difference_has_a_colour_only_where_its_corrected_p_value_is_small() -> None:
    column = result.Column(key="lift", label="lift", unit="points")
    clear, chance = ({"mean": 0.02, "low": 0.001, "high": 0.04, "p": p, "adjusted": True} for p in (0.01, 0.3))
    signs = [shown_cell(result.Interval(**cell), column, 0.05).sign for cell in (clear, chance)]
    assert signs == [1, 0]
