"""Model card and dataset card, filled in from a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from plad_ray.artifacts import Artifact
from plad_ray.config import Experiment, Model
from plad_ray.models.policy import holds_adapter
from plad_ray.pairs.stats import render as render_pairs
from plad_ray.remote import is_uri
from plad_ray.report.collect import describe
from plad_ray.report.markdown import escape, fenced
from plad_ray.report.sentences import how, interval, number, percent


def model_card(
    exp: Experiment, repo: str, pairs_repo: str | None, arm: str, adapter: Artifact, evaluation: Artifact | None
) -> str:
    manifest = adapter.manifest
    model = exp.student.model
    whole = not holds_adapter(adapter.local_folder())
    local = base_is_local(exp)
    data = ModelCardData(
        library_name="transformers" if whole else "peft",
        base_model=None if local else model.path,
        datasets=[pairs_repo] if pairs_repo else None,
        pipeline_tag="text-generation",
        tags=["plad", "distillation", "preference", *([] if whole else ["lora"])],
    )
    _, distill = exp.arms()[arm]
    return _render(
        "model_card.md.j2",
        data=data.to_yaml(),
        name=repo,
        whole=whole,
        base=named(model),
        base_is_local=local,
        base_artifact=", ".join(name for key, name in manifest["inputs"].items() if key.startswith("base/")),
        teacher=named(exp.teacher.model) if exp.teacher else "imported text",
        objective=escape(describe({"name": distill.objective.name, **distill.objective.params})),
        pairs_repo=pairs_repo,
        artifact=adapter.name,
        commit=manifest.get("git_commit") or "unknown",
        results="\n".join(_results(evaluation, arm)) if evaluation else "",
        training="\n".join(f"- {escape(k)}: {number(v, 4)}" for k, v in sorted(_numbers(manifest["metrics"]).items())),
        settings=fenced(settings(exp), "yaml"),
    )


def dataset_card(exp: Experiment, repo: str, pairs_repo: str, pairs: Artifact) -> str:
    data = DatasetCardData(
        task_categories=["text-generation"],
        tags=["preference", "dpo", "trl", "synthetic"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    return _render(
        "dataset_card.md.j2",
        data=data.to_yaml(),
        name=pairs_repo,
        repo=repo,
        chat=exp.student.model.template == "chat",
        teacher=named(exp.teacher.model) if exp.teacher else "imported text",
        student=named(exp.student.model),
        artifact=pairs.name,
        summary=fenced(render_pairs(pairs.manifest["metrics"])),
        source=escape(exp.data.hub or exp.data.source),
        settings=fenced(settings(exp), "yaml"),
    )


def settings(exp: Experiment) -> str:
    """The experiment as YAML without the places of files on this machine, and without ``runtime``."""
    here: dict[str, Any] = {"data": {"path", "splits_paths", "responses", "pairs"}, "runtime": True, "merge": True}
    recorded = exp.model_dump(mode="json", exclude=here, exclude_defaults=True)
    for role in ("teacher", "student"):
        model = recorded.get(role, {}).get("model", {})
        model.pop("adapter", None)
        if "path" in model:
            model["path"] = named(getattr(exp, role).model)
    if exp.scorer is not None and exp.scorer.model:
        recorded["scorer"]["model"] = _place(exp.scorer.model)
    return yaml.safe_dump(recorded, sort_keys=False, allow_unicode=True)


def base_is_local(exp: Experiment) -> bool:
    """Whether the weights under the adapter are on no Hub."""
    model, sft = exp.student.model, exp.student.sft
    return model.path is None or (sft is not None and sft.method == "full") or not _on_hub(model.path)


def named(model: Model) -> str:
    """How a card names a model: by its id on the Hub, never by a path of this machine."""
    if model.api is not None:
        return f"{model.api.name} (behind an API)"
    if model.scratch is not None:
        return f"a {model.scratch.model_type} model from scratch"
    assert model.path is not None
    return _place(model.path)


def _place(path: str) -> str:
    """An id on the Hub as it is; of a folder, here or at a URI, its name alone."""
    return path if _on_hub(path) else Path(path.partition("?")[0]).name


def _on_hub(path: str) -> bool:
    return not is_uri(path) and not Path(path).expanduser().exists()


def _results(evaluation: Artifact, arm: str) -> list[str]:
    metrics = evaluation.store.read_json(evaluation.file("files/metrics.json"))
    lines = [
        f"{metrics['prompts']} prompts of the {metrics['split']} split, {percent(metrics['confidence'], 0)} intervals.",
        "",
        "| | how | ROUGE-L | words | score | beats reference | lift, points |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in metrics["table"]:
        if row["policy"] in ("teacher", "student", arm):
            won, lift = row["win_reference"], row["lift"]
            cells = [escape(row["label"]), how(row["temperature"]), number(row["rougeL"]), number(row["words"])]
            cells += [number(row["score"], 3), f"{percent(won['mean'])} {interval(won)}" if won else "–"]
            cells += [f"{100 * lift['mean']:+.1f} {interval(lift, True)}" if lift else "–"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _render(template: str, **values: Any) -> str:
    loader = PackageLoader("plad_ray.export", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values) + "\n"  # Markdown: every text in it is escaped or fenced
