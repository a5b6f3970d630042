"""The documentation site builds without a warning, and what it tells to type is accepted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from plad_ray import config
from plad_ray.cli import app
from plad_ray.config.loading import apply_override
from plad_ray.config.study import load_study
from plad_ray.manifest.render import manifest
from plad_ray.study import find as find_study

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/pages").rglob("*.md"))
TEXT = {str(page.relative_to(ROOT / "docs/pages")): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(language: str) -> list[tuple[str, str]]:
    found = [(p, b) for p, text in TEXT.items() for b in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)]
    assert found
    return found


COMMANDS = [
    (page, shlex.split(line.partition(" > ")[0], comments=True))
    for page, block in blocks("bash")
    for line in block.splitlines()
]
PLAD = [(page, command[1:]) for page, command in COMMANDS if command and command[0] == "plad"]
OTHER = {"make", "export", "kubectl", "ray", "plad"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as `make docs` does; --strict makes a broken link fail."""
    folder = tmp_path_factory.mktemp("site")
    command = [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        [*command, "--config-file", ROOT / "docs/mkdocs.yml"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site):
    for page in TEXT:
        made = site / page.removesuffix("index.md").removesuffix(".md") / "index.html"
        assert made.is_file(), page
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', made.read_text())
        assert loaded == [], page


def test_the_reference_is_of_the_configuration_and_the_commands(site):
    experiment = (site / "reference/experiment/index.html").read_text()
    for key in config.Experiment.model_fields:
        assert f"<code>{key}</code>" in experiment
    assert "zero_stage" in experiment and "logp_reduction" not in experiment.split("distill")[0]
    assert "egress_ports" in (site / "reference/values/index.html").read_text()
    cli = (site / "reference/cli/index.html").read_text()
    commands = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    assert len(commands) >= 10 and all(f"plad {name}" in cli for name in commands)


def test_the_tutorials_experiment_is_valid():
    [(_, block)] = [(p, b) for p, b in blocks("yaml") if p == "tutorial.md"]
    assert config.parse(yaml.safe_load(block), "tutorial.md").name == "mine"


@pytest.mark.parametrize("page, command", PLAD, ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_commands_are_accepted(page: str, command: list[str], monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert all(option in shown.output for option in command if option.startswith("--"))
    overrides = [word for word in command if "=" in word and not word.startswith("--")]
    files = [word for word in command if word.endswith(".yaml")]
    for file in files:
        if command[0] == "manifest":
            assert manifest(ROOT / file, tuple(overrides))
        elif command[0] == "study":
            name = command[1]
            assert load_study(name, find_study(name).settings, ROOT / file, overrides)[0].name
        elif file.startswith("jobs/"):
            assert config.load(file, overrides).name
        else:
            assert file == "mine.yaml"
            raw = yaml.safe_load(next(b for p, b in blocks("yaml") if p == "tutorial.md"))
            for override in overrides:
                apply_override(raw, override)
            config.parse(raw)


def test_other_commands_and_files_that_are_named_are_there():
    makefile = (ROOT / "Makefile").read_text()
    assert {command[0] for _, command in COMMANDS if command} <= OTHER
    for _, command in COMMANDS:
        if command and command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, flags=re.MULTILINE), command
        for word in command:
            if re.match(r"(jobs|cluster)/", word):
                assert (ROOT / word).is_file(), word
    for page, text in TEXT.items():
        for path in re.findall(r"`((?:jobs|cluster)/[\w./]+)`", text):
            assert (ROOT / path).is_file(), (page, path)
