"""Every experiment file: loaded, planned, dry-run and its prompts read, with tiny models and rows in place of the real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from plad_ray.artifacts import Store
from plad_ray.cli import app
from plad_ray.config import Experiment, load
from plad_ray.pipeline import plan
from tests.conftest import save_tiny_model

ROOT = Path(__file__).parents[1]
FILES = sorted(file for file in ROOT.glob("jobs/*.yaml") if file.name != "runtime_env.yaml")
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TURN = "\n\nHuman: w{0}\n\nAssistant: w1\n\nHuman: w2 w3?\n\nAssistant:"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of a model of the family that a hub id is of; another for each id."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(path: str) -> Path:
        if path not in made:
            family = next(
                (f for name, f in {"gpt-neo": "gpt_neo", "t5": "t5"}.items() if name in path.lower()), "llama"
            )
            room = {} if family == "t5" else {"max_position_embeddings": 4096}
            made[path] = save_tiny_model(root / str(len(made)), family, seed=len(made), **room)
            (made[path] / "chat_template.jinja").write_text(CHAT)
        return made[path]

    return folder


def rows(exp: Experiment) -> list[dict]:
    """What the source of ``exp`` reads: dialogues, TL;DR's columns, or those that the file names."""
    if exp.data.source == "hh":
        return [{"chosen": TURN.format(i) + " yes", "rejected": TURN.format(i) + " no"} for i in range(40)]
    if exp.data.source == "tldr":
        return [{"prompt": f"POST: w{i}\n\nTL;DR:", "completion": " w1"} for i in range(40)]
    prompt, reference = exp.data.columns.prompt, exp.data.columns.reference
    said = [{"role": "user", "content": "w"}, {"role": "assistant", "content": "w1 w2"}]
    return [{prompt: f"w{i} w2", reference: said if reference == "chosen" else "w1 w2"} for i in range(40)]


def local(file: Path, folder: Path, models) -> list[str]:
    """Overrides that put what is here in place of what is elsewhere."""
    exp, found = load(file), [f"runtime.store={folder / 'runs'}"]
    for name in ("teacher", "student"):
        role = getattr(exp, name)
        if role is not None and role.model.path is not None:
            found.append(f"{name}.model.path={models(role.model.path)}")
            found += [f"{name}.model.eos_token=null"]
    if exp.data.source != "demo":
        data = folder / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(exp)))
        found += [f"data.path={data}", *(f"data.{key}=null" for key in ("hub", "hub_config", "revision"))]
        found += ["data.hub_splits={}", "data.splits_paths={}", "data.sizes={}"]
        found += ["data.fractions={train: 0.25, distill: 0.25, dev: 0.25, test: 0.25}"]
    if exp.scorer is not None and exp.scorer.model is not None:
        LlamaConfig(num_labels=1).save_pretrained(folder / "reward")
        found.append(f"scorer.model={folder / 'reward'}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_plans_dry_runs_and_reads_its_prompts(file: Path, tmp_path, models, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    overrides = local(file, tmp_path, models)
    shown = CliRunner().invoke(app, ["run", str(file), *overrides, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    exp = load(file, overrides)
    whole = plan(exp)
    assert all(name in shown.output for name in whole.stages)
    read = CliRunner().invoke(app, ["stage", "prompts", str(file), *overrides])
    assert read.exit_code == 0, read.output
    prompts = list(whole.stages["prompts"].artifact(Store(exp.runtime.store)).rows())
    assert {row["split"] for row in prompts} == {"train", "distill", "dev", "test"}
    if exp.data.source == "hh":
        assert all(r["prompt"].endswith("w2 w3?\n\nAssistant:") and r["reference"] == " yes" for r in prompts)
        assert [m["role"] for m in prompts[0]["messages"]] == ["user", "assistant", "user"]
    if file.stem == "qwen":
        assert {row["reference"] for row in prompts} == {"w1 w2"}


def test_a_modern_pair_is_planned_and_its_teacher_spread_over_two_gpus(tmp_path, models):
    from plad_ray.planning.command import Given, made

    exp = load(ROOT / "jobs/qwen.yaml")
    sizes = {"hidden_size": 5120, "num_hidden_layers": 2, "num_attention_heads": 40, "num_key_value_heads": 8}
    LlamaConfig(**sizes).save_pretrained(tmp_path)
    configs = tuple(f"{role}={tmp_path / 'config.json'}" for role in ("teacher", "student"))
    found = made(exp, Given(prompts=1000, configs=configs))
    assert [e.stage for e in found.estimates if e.stage.startswith("sft")] == []
    teacher = next(e for e in found.estimates if e.stage == "responses: teacher")
    assert (teacher.count, teacher.devices) == (2, 2)
