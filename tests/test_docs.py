"""The documentation site builds without a warning, and what it tells to type is accepted."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from plad_ray import config
from plad_ray.artifacts import Store
from plad_ray.cli import app
from plad_ray.config.loading import apply_override
from plad_ray.config.study import FILE_KEYS, load_study
from plad_ray.manifest.render import manifest
from plad_ray.pipeline import plan
from plad_ray.stages import execute
from plad_ray.study import find as find_study
from plad_ray.study import sweep
from tests import test_readme
from tests.conftest import save_tiny_model
from tests.test_experiments import CHAT

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
RAY = [words[words.index("ray") + 1 :] for _, words in COMMANDS if "ray" in words]
RAY += [words[words.index("ray") + 1 :] for words in test_readme.COMMANDS if "ray" in words]
TUTORIAL = next(block for page, block in blocks("yaml") if page == "tutorial.md")
#: What `plad study sweep jobs/studies/sweep.yaml` writes.
BEST = "runs/demo-sweep/study-sweep/best.yaml"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as `make docs` does; --strict makes a broken link fail."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        [*command, "--config-file", ROOT / "docs/mkdocs.yml"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site):
    measured = [f"measurements/{name}.md" for name in ("evidence", "speed", "scale")]
    for page in [*TEXT, *measured]:
        made = site / page.removesuffix("index.md").removesuffix(".md") / "index.html"
        assert made.is_file(), page
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', made.read_text())
        assert loaded == [], page


def test_documents_of_the_repository_are_in_the_site_with_their_plots(site):
    evidence = (site / "measurements/evidence/index.html").read_text()
    plots = re.findall(r'<img [^>]*src="([^"]+)"', evidence)
    named = re.findall(r"!\[.*?\]\(evidence/(.*?)\)", (ROOT / "docs/EVIDENCE.md").read_text(encoding="utf-8"))
    assert [Path(plot).name for plot in plots if plot.endswith(".svg")] == named
    assert all((site / "measurements/evidence" / plot).is_file() for plot in plots)


def test_home_leads_to_every_page():
    pages = re.findall(r"[\w/-]+\.md", (ROOT / "docs/mkdocs.yml").read_text().split("\nnav:")[1])
    assert set(re.findall(r"\]\(([\w/-]+\.md)\)", TEXT["index.md"])) == set(pages) - {"index.md"}
    assert set(TEXT) <= set(pages)


def test_the_reference_is_of_the_configuration_and_the_commands(site):
    experiment = (site / "reference/experiment/index.html").read_text()
    for key in config.Experiment.model_fields:
        assert f"<code>{key}</code>" in experiment
    assert "zero_stage" in experiment and "logp_reduction" not in experiment.split("distill")[0]
    assert "egress_ports" in (site / "reference/values/index.html").read_text()
    cli = (site / "reference/cli/index.html").read_text()
    commands = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    assert len(commands) >= 10 and all(f"plad {name}" in cli for name in commands)


def test_the_tutorial_is_planned_as_it_is_written(tmp_path, monkeypatch):
    """Its file, its kind of rows and its commands in an empty folder; only the models are others than at its paths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("plad_ray.cluster.connect", None)  # no Ray: a plan needs none
    row = json.loads(next(block for page, block in blocks("json") if page == "tutorial.md"))
    Path("prompts.jsonl").write_text("".join(json.dumps({**row, "question": f"w{i} w2"}) + "\n" for i in range(60)))
    Path("mine.yaml").write_text(TUTORIAL)
    models = []
    for seed, role in enumerate(("teacher", "student")):
        folder = save_tiny_model(tmp_path / role, seed=seed, max_position_embeddings=2048)
        (folder / "chat_template.jinja").write_text(CHAT)
        models.append(f"{role}.model.path={folder}")
    runs = [command for page, command in PLAD if page == "tutorial.md" and command[0] == "run"]
    assert any("--dry-run" in command for command in runs)
    for command in runs:
        shown = CliRunner().invoke(app, [*command, *models, "--dry-run"])
        assert shown.exit_code == 0, shown.output
        assert all(name in shown.output for name in plan(config.load("mine.yaml", models)).stages)
    exp = config.load("mine.yaml", models)
    prompts, store = plan(exp).stages["prompts"], Store(exp.runtime.store)
    execute([prompts], store, exp.runtime, say=lambda _: None)
    read = list(prompts.artifact(store).rows())
    assert len(read) == 60 and {r["reference"] for r in read} == {row["answer"]}


@pytest.mark.parametrize("page, block", blocks("yaml"), ids=[page for page, _ in blocks("yaml")])
def test_files_and_parts_of_files_are_valid(page: str, block: str):
    raw = yaml.safe_load(block)
    if set(raw) <= FILE_KEYS:
        study = find_study(re.match(r"# plad study ([\w-]+)\n", block)[1])
        assert study.settings.model_validate(raw["study"])
    else:
        assert config.parse({**yaml.safe_load(TUTORIAL), **raw}, page).name == "mine"


def accepted(group: Any, words: list[str]) -> None:
    """As click reads a command line, up to where it would run: it raises for a command, option or argument too many."""
    command, left = group, list(words)
    while hasattr(command, "commands"):
        command = command.commands[left.pop(0)]
    command.make_context(command.name, left)


@pytest.mark.parametrize("page, command", PLAD, ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_commands_are_accepted(page: str, command: list[str], monkeypatch):
    monkeypatch.chdir(ROOT)
    accepted(typer.main.get_command(app), command)
    overrides = [word for word in command if "=" in word and not word.startswith("--")]
    files = [word for word in command if word.endswith(".yaml")]
    for file in files:
        if command[0] == "manifest":
            assert manifest(ROOT / file, tuple(overrides))
        elif command[0] == "study" or "--study" in command:
            name = command[command.index("--study") + 1 if "--study" in command else 1]
            study = find_study(name)
            exp, settings = load_study(name, study.settings, ROOT / file, overrides)
            if name == "sweep":
                assert sweep.candidates_of(exp, settings.grid)[0]
        elif file.startswith("jobs/"):
            assert config.load(file, overrides).name
        elif file == BEST:
            exp, settings = load_study("sweep", sweep.Settings, ROOT / "jobs/studies/sweep.yaml")
            assert f"{exp.runtime.store}/{exp.name}/study-sweep/best.yaml" == BEST
            changes = sweep.candidates_of(exp, settings.grid)[0]["try0"]
            assert config.parse(yaml.safe_load(sweep.best_yaml(exp, changes))).name == "demo-sweep-best"
        else:
            assert file == "mine.yaml"
            raw = yaml.safe_load(TUTORIAL)
            for override in overrides:
                apply_override(raw, override)
            config.parse(raw)


def test_commands_of_ray_are_accepted():
    from ray.scripts.scripts import cli

    assert {words[0] for words in RAY} >= {"up", "job"}
    for words in RAY:
        accepted(cli, words)


def test_a_command_that_is_not_there_is_not_accepted():
    from ray.scripts.scripts import cli

    for group, words in ((cli, "job send"), (cli, "up --fast x"), (typer.main.get_command(app), "run a.yaml --fast")):
        with pytest.raises(Exception, match=r"send|--fast"):
            accepted(group, words.split())


def test_the_mask_of_the_layout_is_as_drawn():
    import numpy as np
    from transformers import LlamaConfig

    from plad_ray.train.layout import Row
    from plad_ray.train.masks import segment_masks
    from plad_ray.train.shared import share

    lines = re.findall(r"^[xyz]\d {5}(\S.*)$", TEXT["explanation/layout.md"], flags=re.MULTILINE)
    drawn = [line.split() for line in lines]
    batch = share([Row(np.zeros(3, np.int32), (np.zeros(2, np.int32),) * 2, (0.0, 0.0))], pad=0)
    assert batch.segments is not None
    mask = segment_masks(batch.segments, LlamaConfig())[0, 0]
    assert [[cell == "#" for cell in line[:7]] for line in drawn] == mask.tolist()
    assert [int(line[7]) for line in drawn] == batch.segments.position_SL[0].tolist()
    predicting = [i for i, line in enumerate(drawn) if len(line) > 8]
    assert predicting == batch.read_M.tolist()


def test_numbers_of_the_layout_are_among_the_results():
    results = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| (.*\d m?s.*) \| (.*) \|$", TEXT["explanation/layout.md"], flags=re.MULTILINE)
    assert len(rows) == 4
    for cell in (cell for row in rows for cell in row):
        numbers = re.findall(r"[\d.]+", cell)
        found = [line for line in results.splitlines() if set(numbers) <= set(re.findall(r"\d[\d.]*", line))]
        assert found, cell


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
        for path in re.findall(r"`((?:jobs|cluster|plad_ray|benchmarks)/[\w./]+)`", text):
            assert (ROOT / path).is_file(), (page, path)
