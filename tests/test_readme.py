"""What the README names is there, and what it tells to type is accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from plad_ray import config, study
from plad_ray.config.loading import apply_override
from plad_ray.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
PLAD = [command[1:] for command in COMMANDS if command[0].endswith("plad")]


def test_links_lead_to_files():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README + CONTRIBUTING) if "://" not in t]
    assert len(targets) >= 5
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = {c[1] for c in COMMANDS if c[0] == "make"} | set(re.findall(r"`make ([\w-]+)", README + CONTRIBUTING))
    assert {"demo", "test", "demo-seeds", "chaos"} <= named
    assert [t for t in named if not re.search(rf"^{t}:", makefile, flags=re.MULTILINE)] == []


def test_own_experiment_is_valid():
    [block] = [block for language, block in BLOCKS if language == "yaml"]
    experiment = config.parse(yaml.safe_load(block), "README.md")
    assert experiment.runtime.train.zero_stage == 2
    for command in PLAD:
        if "mine.yaml" in command:
            overrides = [a for a in command if "=" in a and not a.startswith("study.")]
            raw = yaml.safe_load(block)
            for override in overrides:
                apply_override(raw, override)
            config.parse(raw)


@pytest.mark.parametrize("command", [c for c in PLAD if any(a.startswith("jobs/") for a in c)], ids=" ".join)
def test_experiments_and_overrides_load(command: list[str], monkeypatch):
    monkeypatch.chdir(ROOT)
    [file] = [a for a in command if a.startswith("jobs/")]
    overrides = [a for a in command if "=" in a and not a.startswith("-")]
    if command[0] == "study":
        assert config.load_study(command[1], study.find(command[1]).settings, file, overrides)[0].name
    else:
        assert config.load(file, overrides).name


def test_commands_and_options_exist():
    from plad_ray.cli import app

    assert len(PLAD) >= 5
    for command in PLAD:
        shown = CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, command
        for option in (a for a in command if a.startswith("--")):
            assert option in shown.output, command


def test_studies_are_all_in_the_table():
    section = README[README.index("## Studies") : README.index("## Training")]
    assert set(re.findall(r"^\| `([\w-]+)` \|", section, flags=re.MULTILINE)) == set(study.STUDIES)


def test_objectives_are_all_in_the_table():
    named = set(re.findall(r"^\| `(\w+)` \|", README[: README.index("## Studies")], flags=re.MULTILINE))
    assert named | {"sft"} >= set(OBJECTIVES), "every objective but plain SFT has its row"
    assert named <= set(OBJECTIVES) | {"distilled", "seqkd", "self"}
