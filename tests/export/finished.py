"""An experiment on files whose pairs, adapter and evaluation are there, as a run would leave them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import yaml

from plad_ray.artifacts import Store
from plad_ray.config import Experiment, load
from plad_ray.pipeline import plan
from plad_ray.records import pair_schema

#: one pair with what breaks careless writers
TEXTS = [
    ("What is\n“new”?", 'It\'s "this".', "</script>\x1b[31m"),
    ("p1", "good", "bad"),
    ("p2 ", " gut ü", " schlecht"),
]


def finished(folder: Path, chat: bool = False, **changes) -> Experiment:
    """``changes`` are laid over the experiment's sections."""
    models = {name: folder / name for name in ("teacher", "student")}
    for name, model in models.items():
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps({"name": name}))
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "reference": c}) + "\n" for p, c, _ in TEXTS)
    )
    section = {"template": "chat" if chat else "plain"}
    experiment = {
        "name": "mine",
        "data": {"source": "files", "path": str(folder / "prompts.jsonl")},
        "teacher": {"model": {"path": str(models["teacher"]), **section}},
        "student": {"model": {"path": str(models["student"]), **section}},
        "compare": {"plain": {"distill": {"objective": {"name": "sft"}}}},
        "runtime": {"store": str(folder / "runs")},
        **changes,
    }
    (folder / "exp.yaml").write_text(yaml.safe_dump(experiment))
    exp = load(folder / "exp.yaml")
    whole, store = plan(exp), Store(exp.runtime.store)
    pairs = whole.report.inputs["pairs/distilled"].artifact(store)
    pairs.write_rows(pa.Table.from_pylist([row(i, chat) for i in range(len(TEXTS))], schema=pair_schema(chat)))
    side = {"policy": "teacher", "temperature": 0.7}
    metrics = {"pairs": 3, "prompts": 3, "chosen": str(side), "rejected": "student", "dropped": {"identical": 1}}
    metrics |= {
        "identical_share": 0.25,
        "words": {"chosen": 2.0, "rejected": 1.0},
        "warnings": [],
        "length_gap": {"mean": 1.0, "histogram": {"edges": [0, 1, 2], "counts": [1, 2]}},
    }
    pairs.finish({"name": "pairs", "inputs": {}, "metrics": metrics, "config": {}})
    adapter = whole.report.inputs["train/distilled"].artifact(store)
    for name, content in {
        "adapter_config.json": json.dumps(
            {"base_model_name_or_path": str(models["student"]), "peft_type": "LORA", "r": 8}
        ),
        "adapter_model.safetensors": "weights",
        "plad.json": json.dumps({"base": str(models["student"])}),
        "metrics.jsonl": "{}\n",
    }.items():
        store.write_bytes(adapter.file(f"files/{name}"), content.encode())
    trained = {"loss": 0.25, "steps": 3, "layout": "shared"}
    adapter.finish({"name": "distill", "inputs": {"pairs": pairs.name}, "metrics": trained, "config": {}})
    return exp


def row(i: int, chat: bool) -> dict:
    prompt, chosen, rejected = TEXTS[i]
    if chat:
        prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    rest = {"chosen_score": 1.0, "rejected_score": None, "score_gap": None, "order": "pseudo", "prompt_id": f"p{i}"}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **rest}
