"""Study files: what is laid over what, where overrides go, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from plad_ray import study
from plad_ray.cli import app
from plad_ray.config import load_study
from plad_ray.errors import PladError

JOBS = Path(__file__).parents[2] / "jobs"
FILES = sorted((JOBS / "studies").glob("*.yaml"))
#: files that are not named as their study is
OTHERS = {"table1": "compare"}


def study_of(file: Path) -> str:
    return OTHERS.get(file.stem, file.stem)


def test_every_study_has_its_file():
    assert {file.stem for file in FILES} == {*study.STUDIES, *OTHERS}
    for file in FILES:
        assert f"plad study {study_of(file)} jobs/studies/{file.name}" in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_checked_in_files_are_planned(file, tmp_path):
    """With every model, text and setting known, all that is needed is there."""
    made = CliRunner().invoke(app, ["study", study_of(file), str(file), f"runtime.store={tmp_path}", "--dry-run"])
    assert made.exit_code == 0, made.output
    assert ("preferences" if file.stem == "reward" else "responses") in made.output


def load(tmp_path, text: str, *overrides: str):
    (tmp_path / "study.yaml").write_text(text)
    return load_study("compare", study.find("compare").settings, tmp_path / "study.yaml", overrides)


def test_overrides_replace_and_those_of_the_study_go_to_its_settings(tmp_path):
    text = f"experiment: {JOBS}/demo.yaml\noverride: {{name: x, compare: {{}}, distill.epochs: 7}}\nstudy: {{seeds: [1]}}\n"
    exp, settings = load(tmp_path, text, "study.seeds=[3, 4]", "distill.epochs=8")
    assert (exp.name, exp.compare, exp.distill.epochs, settings.seeds) == ("x", {}, 8, (3, 4))
    plain, settings = load_study("compare", study.find("compare").settings, JOBS / "demo.yaml", ["study.seeds=[3]"])
    assert (plain.name, settings.seeds) == ("demo", (3,)) and "seqkd" in plain.compare


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"experiment: {JOBS}/demo.yaml\nseed: 3", r"unknown key seed; .* stands below override \(override.seed\)"),
        (f"experiment: {JOBS}/demo.yaml\nstudy: {{seed: [3]}}", "study.seed: unknown key; did you mean seeds"),
        (f"experiment: {JOBS}/demo.yaml\nstudy: {{seeds: [3, 3]}}", "study.seeds: seeds must be at least one"),
        ("experiment: nowhere.yaml", "no such experiment file"),
        ("override: {seed: 3}", "override without experiment"),
    ],
)
def test_mistakes_are_explained(tmp_path, text, message):
    with pytest.raises(PladError, match=message):
        load(tmp_path, text)


def test_unknown_studies_and_missing_files_are_explained():
    asked = CliRunner().invoke(app, ["study", "compair", "x.yaml"])
    assert asked.exit_code == 2 and "did you mean compare?" in asked.output
    asked = CliRunner().invoke(app, ["study", "compare"])
    assert asked.exit_code == 2 and "jobs/studies/compare.yaml" in asked.output
    assert "study.seeds" in CliRunner().invoke(app, ["study", "list"]).output
