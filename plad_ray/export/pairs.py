"""``plad export pairs``: the pairs of a finished run as a file for another trainer."""

from __future__ import annotations

import json
from pathlib import Path

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment
from plad_ray.errors import PladError
from plad_ray.export.formats import FORMATS, dataset_info
from plad_ray.pipeline import Plan, plan

DATASET_INFO = "dataset_info.json"


def export(exp: Experiment, arm: str, to: str, out: Path) -> list[Path]:
    """Write the pairs that ``arm`` trains on to the new JSONL file ``out``; for LLaMA-Factory also the dataset_info.json
    beside it. Returns what was written. Raises PladError for an unknown format or arm, and for pairs that are not made."""
    if to not in FORMATS:
        raise PladError(f"--to {to}: no such format; formats: {', '.join(FORMATS)}")
    info = out.parent / DATASET_INFO
    for path in (out, info) if to == "llama-factory" else (out,):
        if path.exists():
            raise PladError(f"{path} is there already; give a new file")
    pairs = finished_pairs(exp, arm, plan(exp), Store(exp.runtime.store))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in pairs.rows():
            file.write(json.dumps(FORMATS[to](row), ensure_ascii=False) + "\n")
    partial.replace(out)
    if to != "llama-factory":
        return [out]
    entry = dataset_info(exp.name, out.name, exp.student.model.template == "chat")
    info.write_text(json.dumps(entry, indent=2), encoding="utf-8")
    return [out, info]


def finished_pairs(exp: Experiment, arm: str, whole: Plan, store: Store) -> Artifact:
    """The pair table of ``arm``. Raises PladError when it has none, or it is not made yet."""
    check_arm(exp, arm)
    stage = whole.report.inputs.get(f"pairs/{arm}")
    if stage is None or not has_pairs(whole, arm):
        trains_on = "the references of the prompts" if stage is None else "lists of texts"
        raise PladError(f"arm {arm} trains on {trains_on}, so it has no pairs; give another --arm")
    artifact = stage.artifact(store)
    if not artifact.finished:
        raise PladError(
            f"the pairs of arm {arm} are not made yet ({artifact.path}); run `plad stage {stage.name}` first"
        )
    return artifact


def check_arm(exp: Experiment, arm: str) -> None:
    if arm not in exp.arms():
        raise PladError(f"--arm {arm}: no such training run; this experiment has {', '.join(exp.arms())}")


def has_pairs(whole: Plan, arm: str) -> bool:
    """Whether ``arm`` trains on pairs, and not on references or lists."""
    stage = whole.report.inputs.get(f"pairs/{arm}")
    return stage is not None and not stage.name.startswith("lists")
