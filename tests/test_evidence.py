"""docs/EVIDENCE.md: every study in it has its command, its file and its plots; a study that ran is put where it belongs."""

from __future__ import annotations

import re

import pytest

from benchmarks import evidence, marks
from plad_ray.study import STUDIES
from tests.report.test_study_page import made_up

TEXT = evidence.DOCUMENT.read_text(encoding="utf-8")


def test_each_table_has_the_command_it_comes_from_and_each_plot_is_there():
    studies = marks.names(evidence.DOCUMENT)
    assert "scaling" in studies
    for study in studies:
        file = f"jobs/studies/{study}.yaml"
        assert f"plad study {study} {file}" in TEXT.split(f"<!-- {study} -->")[0]
        assert study in STUDIES and (evidence.DOCUMENT.parents[1] / file).exists()
    plots = re.findall(r"!\[.*?\]\((.*?)\)", TEXT)
    assert plots and all((evidence.DOCUMENT.parent / plot).exists() for plot in plots)


def test_a_study_that_ran_is_put_between_its_marks(tmp_path):
    document, made = tmp_path / "EVIDENCE.md", tmp_path / "study-x"
    document.write_text("before\n<!-- x -->\nold\n<!-- /x -->\nafter\n<!-- y -->\n<!-- /y -->\n")
    made.mkdir()
    result = made_up({"evaluation": "evaluate-0"})
    (made / "result.json").write_text(result.model_dump_json())
    for figure in result.drawn:
        (made / f"{figure.key}.svg").write_text(figure.key)
    evidence.write("x", made, document)
    text = document.read_text()
    assert text.startswith("before\n<!-- x -->\n### ") and "old" not in text
    assert text.endswith("<!-- /x -->\nafter\n<!-- y -->\n<!-- /y -->\n") and marks.names(document) == ["x", "y"]
    for figure in result.drawn:
        assert f"(evidence/x-{figure.key}.svg)" in text
        assert (tmp_path / f"evidence/x-{figure.key}.svg").read_text() == figure.key
    with pytest.raises(ValueError, match="must have the marks <!-- z -->"):
        evidence.write("z", made, document)
