"""Small made-up artifacts for tests: prompts, responses and scores as stages would leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Runtime
from plad_ray.records import PROMPT, RESPONSE, SCORE
from plad_ray.stages import Job


def artifact(root: Path, name: str, rows: list[dict[str, Any]], schema: pa.Schema, **manifest: Any) -> Artifact:
    """A finished artifact whose ``rows/`` holds ``rows``; missing columns are null."""
    made = Artifact(Store(str(root)), name)
    made.write_rows(pa.Table.from_pylist(rows, schema=schema))
    made.finish({"name": name, "inputs": {}, "metrics": {}, "identity": {}, "version": 1, "digest": name, **manifest})
    return made


def job(root: Path, stage: str, config: dict[str, Any], inputs: dict[str, Artifact]) -> Job:
    return Job(stage, config, inputs, Artifact(Store(str(root)), f"{stage}-out"), Runtime())


def prompt(
    prompt_id: str, split: str = "distill", reference: str | None = "a reference", **more: Any
) -> dict[str, Any]:
    return {"prompt_id": prompt_id, "split": split, "prompt": f"prompt {prompt_id}", "reference": reference, **more}


def response(policy: str, prompt_id: str, text: str, temperature: float = 0.7, **more: Any) -> dict[str, Any]:
    rid = f"{policy}:{prompt_id}:{temperature:g}:{more.get('sample', 0)}"
    defaults = {"split": "distill", "sample": 0, "finish_reason": "stop", "num_tokens": len(text.split())}
    return (
        {"rid": rid, "policy": policy, "prompt_id": prompt_id, "temperature": temperature, "text": text}
        | defaults
        | more
    )


def score(of: dict[str, Any], value: float) -> dict[str, Any]:
    """The score row of a response, or of a prompt's reference."""
    if "rid" in of:
        return {name: of[name] for name in SCORE.names if name != "score"} | {"score": value}
    place = {"policy": "reference", "prompt_id": of["prompt_id"], "split": of["split"], "temperature": 0.0, "sample": 0}
    return {"rid": f"reference:{of['prompt_id']}", **place, "score": value}


def prompts_artifact(root: Path, rows: list[dict[str, Any]]) -> Artifact:
    return artifact(root, "prompts-0", rows, PROMPT)


def responses_artifact(root: Path, rows: list[dict[str, Any]], name: str = "responses-0") -> Artifact:
    return artifact(root, name, rows, RESPONSE)


def scores_artifact(root: Path, rows: list[dict[str, Any]], name: str = "scores-0") -> Artifact:
    return artifact(root, name, rows, SCORE)
