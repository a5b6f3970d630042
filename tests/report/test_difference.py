"""``plad report``: two runs on the prompts that they share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plad_ray.cli import app
from plad_ray.errors import PladError
from plad_ray.report import command, difference, runs
from plad_ray.report import run as report_run
from tests.report.made_up import FLAWS, finish, world
from tests.report.test_browser import browser, opened  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Two finished runs on the same prompts; the second distils better, with another margin and one arm's texts equal."""
    root = tmp_path_factory.mktemp("two")
    better = {**FLAWS, "distilled": 0.02}
    for name, tag, flaws, overrides in (
        ("plain", "a", FLAWS, ()),
        ("wider", "b", better, ("distill.objective.margin=3", "name=wider")),
    ):
        made = world(root, 60, name=name, tag=tag, flaws=flaws, overrides=overrides)
        finish(made, report_run.run(made), 1.0)
    return root


@pytest.fixture(scope="module")
def found(store) -> difference.Difference:
    return difference.compare(*(difference.Run.of(runs.find(name, str(store))) for name in ("plain", "wider")))


def test_differences_are_paired_on_the_common_prompts(found) -> None:
    assert len(found.prompts) == 60 and found.scored
    [row] = [r for r in found.rows if (r.policy, r.temperature) == ("distilled", 0.7)]
    scores = []
    for run in (found.first, found.second):
        rows = run.inputs["evaluation"].table().to_pylist()
        wanted = [r for r in rows if r["policy"] == "distilled" and r["temperature"] == 0.7]
        scores.append({r["prompt_id"]: r["score"] for r in wanted})
    gaps = [scores[1][i] - scores[0][i] for i in found.prompts]
    assert row.differences["score"].mean == pytest.approx(sum(gaps) / 60)
    assert row.wins.mean == pytest.approx(sum((g > 0) + (g == 0) / 2 for g in gaps) / 60)
    assert row.clear and "distilled's text sampled at 0.7 is better in wider" in found.sentences[1].text
    [same] = [r for r in found.rows if (r.policy, r.temperature) == ("teacher", 0.7)]
    assert same.differences["score"].mean == 0 and same.wins.mean == 0.5 and same.p == 1


def test_settings_and_artifacts_that_differ_are_named(found) -> None:
    [(key, before, after)] = found.settings
    assert (key, float(before), float(after)) == ("distill.objective.margin", 1, 3)
    why = {stage: reason for stage, *_, reason in found.stages}
    assert why["prompts-0"] == "the same artifact" and why["evaluate"] == "its inputs"


def test_nested_differences_have_dotted_keys() -> None:
    assert difference.differing({"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 3, "c": 2}, "e": [1]}) == [
        ("a.b", "1", "3"),
        ("d", "–", "–"),
        ("e", "–", "[1]"),
    ]


def test_only_common_prompts_count_and_that_is_said(store, tmp_path) -> None:
    small = world(tmp_path, 20, name="small", tag="c")
    finish(small, report_run.run(small), 1.0)
    sides = difference.Run.of(runs.find("plain", str(store))), difference.Run.of(runs.find("small", str(tmp_path)))
    found = difference.compare(*sides)
    texts = [{p["prompt_id"]: p["prompt"] for p in run.inputs["prompts"].rows()} for run in sides]
    assert found.prompts and all(texts[0][i] == texts[1][i] for i in found.prompts)
    assert any("Only the" in s.text and s.kind == "warning" for s in found.sentences) == (len(found.prompts) < 60)


def test_no_common_prompt_is_an_error(store, tmp_path) -> None:
    other = world(tmp_path, 4, evil="other", name="other", tag="c")
    table = other.inputs["prompts"].table()
    changed = table.set_column(table.column_names.index("prompt"), "prompt", [[f"x{i}" for i in range(len(table))]])
    other.inputs["prompts"].write_rows(changed)
    finish(other, report_run.run(other), 1.0)
    sides = difference.Run.of(runs.find("plain", str(store))), difference.Run.of(runs.find("other", str(tmp_path)))
    with pytest.raises(PladError, match=r"different prompts.*same data"):
        difference.compare(*sides)


def test_the_command_writes_both_pages(store, tmp_path) -> None:
    out = tmp_path / "sub" / "two.html"
    result = CliRunner().invoke(app, ["report", "plain", "wider", "--store", str(store), "--out", str(out)])
    assert result.exit_code == 0, result.output
    page, text = out.read_text(), out.with_suffix(".md").read_text()
    assert result.output.split() == [str(out), str(out.with_suffix(".md"))]
    for expected in ("distill.objective.margin", "60 common prompts", "the same artifact", "wider"):
        assert expected in page and expected in text
    assert page.count("<svg") == 4 + 6 and "distilled, plain" in page and "distilled, wider" in page
    assert page.count("teacher, both") == 60 and re.search(r"<h2>Cost</h2>.*plain.*wider", page, re.DOTALL)


def test_one_run_is_its_own_page(store, tmp_path) -> None:
    out = tmp_path / "one.html"
    result = CliRunner().invoke(app, ["report", "wider", "--store", str(store), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == (store / "report-b" / "files" / "report.html").read_bytes()
    assert out.with_suffix(".md").read_bytes() == (store / "report-b" / "files" / "report.md").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "runs there: plain, wider"),
        (["plain", "plain"], "same run"),
        (["plain", "wider", "plain"], "one run or two"),
        (["plain", "--out", "page.pdf"], "ends in .html"),
        ([str(ROOT / "jobs/demo.yaml")], "not finished"),
    ],
)
def test_what_cannot_be_shown_is_one_message(store, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(
        tmp_path
    )  # an experiment's store is a folder beside one: the demo may have been run where tests are
    result = CliRunner().invoke(app, ["report", *arguments, "--store", str(store)])
    assert result.exit_code == 2 and message in result.stderr


def test_both_runs_fit_beside_each_other_on_screen_and_paper(browser, store, tmp_path) -> None:  # noqa: F811
    [file, _] = command.write(["plain", "wider"], str(store), tmp_path / "ab.html")
    with opened(browser, file) as page:
        assert page.evaluate("[...document.querySelectorAll('.scroll')].every(s => s.scrollWidth <= s.clientWidth)")
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 688, "height": 900})  # A4 less its margins
        assert page.evaluate("document.documentElement.scrollWidth") <= 688
