"""The stages that pipeline.py joins: what configures each, what is its identity, what it keeps busy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plad_ray import objectives
from plad_ray.artifacts import hash_path
from plad_ray.config import Distill, Experiment, Model, Pairs, Role, Sft, SplitName
from plad_ray.data.identity import identity as data_identity
from plad_ray.errors import PladError
from plad_ray.models.policy import identity as model_identity
from plad_ray.stages import Job, Outcome, Stage

#: keys of a section that say where something lies on this machine; its content is hashed instead.
LOCATIONS = {"path", "splits_paths", "adapter", "responses", "pairs", "hub", "revision"}


def lazy(module: str, function: str = "run") -> Callable[[Job], Outcome]:
    """A stage function whose module (torch, vLLM, …) is imported when the stage runs, not when it is planned."""

    def run(job: Job) -> Outcome:
        return getattr(import_module(module), function)(job)

    return run


def prompts(exp: Experiment) -> Stage:
    data = exp.data.model_dump(mode="json")
    source = data_identity(exp.data)
    config = {"data": data, "seed": exp.seed, "source": source}
    identity = {**config, "data": {k: v for k, v in data.items() if k not in LOCATIONS}}
    return Stage("prompts", lazy("plad_ray.data.prepare"), config, {}, identity)


def sft(exp: Experiment, name: str, prompts: Stage) -> Stage | None:
    """None when the role needs none."""
    role: Role | None = getattr(exp, name)
    if role is None or role.sft is None:
        return None
    return _train(exp, f"sft-{name}", "sft", role.model, role.sft, {"prompts": prompts})


def generate_bases(exp: Experiment, prompts: Stage, teacher: Stage | None, student: Stage | None) -> Stage:
    """What exists before distillation: text for pairs, and teacher and initial student on the evaluation prompts."""
    policies: dict[str, Any] = {}
    bases = {"teacher": (exp.teacher, teacher), "student": (exp.student, student)}
    for name, (role, _) in bases.items():
        if role is None:
            continue
        draws = [_draw(exp.evaluate.split, exp.evaluate.temperatures, 1, exp.evaluate.limit)]
        if exp.data.pairs is None and not (name == "teacher" and exp.data.responses):
            draws.insert(0, _draw("distill", role.draw.temperatures, role.draw.samples, None))
        policies[name] = _policy(role, name, draws)
    inputs = {f"{name}/0": stage for name, (_, stage) in bases.items() if stage is not None}
    return _generate(exp, "responses", policies, prompts, inputs)


def generate_arms(
    exp: Experiment, name: str, adapters: dict[str, Stage], prompts: Stage, student: Stage | None, split: SplitName
) -> Stage:
    """Every distilled adapter on the prompts of ``split``, served side by side on the student's base."""
    draws = [_draw(split, exp.evaluate.temperatures, 1, exp.evaluate.limit)]
    policies = {arm: _policy(exp.student, "student", draws) for arm in adapters}
    inputs = {f"{arm}/{i}": s for arm, a in adapters.items() for i, s in enumerate(x for x in (student, a) if x)}
    return _generate(exp, name, policies, prompts, inputs)


def score(exp: Experiment, name: str, prompts: Stage, responses: Stage) -> Stage | None:
    if exp.scorer is None:
        return None
    config = {"scorer": exp.scorer.model_dump(mode="json")}
    identity = {"scorer": {**config["scorer"], **_scorer_identity(exp)}}
    return Stage(
        name, lazy("plad_ray.reward.run"), config, {"prompts": prompts, "responses": responses}, identity, cpus=1
    )


def imported_responses(exp: Experiment, prompts: Stage) -> Stage | None:
    if exp.data.responses is None:
        return None
    return _import("run_responses", "imported", exp.data.responses, prompts)


def pairs(
    exp: Experiment,
    arms: dict[str, tuple[Pairs, Distill]],
    prompts: Stage,
    responses: Stage,
    imported: Stage | None,
    scores: Stage | None,
) -> dict[str, Stage]:
    """One stage for each distinct way of pairing; arms that pair alike share it."""
    if exp.data.pairs is not None:
        finished = _import("run_pairs", "pairs", exp.data.pairs, prompts)
        return dict.fromkeys(arms, finished)
    made: dict[Pairs, Stage] = {}
    inputs = _present({"prompts": prompts, "responses": responses, "imported": imported, "scores": scores})
    for arm, (section, _) in arms.items():
        name = "pairs" if arm == "distilled" else f"pairs-{arm}"
        config = {"pairs": section.model_dump(mode="json"), "chat": exp.student.model.template == "chat"}
        made.setdefault(section, Stage(name, lazy("plad_ray.pairs.build"), config, inputs))
    return {arm: made[section] for arm, (section, _) in arms.items()}


def distill(exp: Experiment, arm: str, section: Distill, pairs: Stage, student: Stage | None) -> Stage:
    name = "distill" if arm == "distilled" else f"distill-{arm}"
    return _train(exp, name, "distill", exp.student.model, section, {"pairs": pairs}, student)


def select_on_dev(
    exp: Experiment, arm: str, section: Distill, prompts: Stage, pairs: Stage, student: Stage | None
) -> Stage:
    """Train every candidate, let them answer the dev prompts, keep the one with the best win rate (PLaD §4.3)."""
    adapters = {
        f"{arm}-{name}": distill(exp, f"{arm}-{name}", candidate, pairs, student)
        for name, candidate in section.candidates().items()
    }
    responses = generate_arms(exp, f"dev-responses-{arm}", adapters, prompts, student, "dev")
    scores = score(exp, f"dev-scores-{arm}", prompts, responses)
    inputs = _present({"scores": scores, **{f"adapter/{name}": stage for name, stage in adapters.items()}})
    return Stage(f"select-{arm}", lazy("plad_ray.evaluate.select"), {"candidates": sorted(adapters)}, inputs)


def evaluate(
    exp: Experiment,
    prompts: Stage,
    responses: Stage,
    scores: Stage | None,
    eval_responses: Stage,
    eval_scores: Stage | None,
) -> Stage:
    config = {
        "evaluate": exp.evaluate.model_dump(mode="json"),
        "arms": {arm: arm for arm in exp.arms()},
        "scorer": exp.scorer is not None,
        "seed": exp.seed,
    }
    inputs = {"prompts": prompts, "responses": responses, "scores": scores}
    inputs |= {"eval_responses": eval_responses, "eval_scores": eval_scores}
    return Stage("evaluate", lazy("plad_ray.evaluate.run"), config, _present(inputs))


def report(
    exp: Experiment,
    prompts: Stage,
    teacher: Stage | None,
    student: Stage | None,
    responses: Stage,
    scores: Stage | None,
    pairs: dict[str, Stage],
    adapters: dict[str, Stage],
    eval_responses: Stage,
    evaluation: Stage,
) -> Stage:
    config = {
        "name": exp.name,
        "experiment": exp.model_dump(mode="json", exclude={"runtime"}, exclude_defaults=True),
        "arms": {arm: distill.objective.model_dump(mode="json") for arm, (_, distill) in exp.arms().items()},
        "scorer": exp.scorer.name if exp.scorer else None,
    }
    inputs = {"prompts": prompts, "sft/teacher": teacher, "sft/student": student, "responses": responses}
    inputs |= {"scores": scores, "eval_responses": eval_responses, "evaluation": evaluation}
    inputs |= {f"pairs/{arm}": stage for arm, stage in pairs.items()}
    inputs |= {f"train/{arm}": stage for arm, stage in adapters.items()}
    inputs["eval_scores"] = evaluation.inputs.get("eval_scores")
    return Stage("report", lazy("plad_ray.report.run"), config, _present(inputs))


def _train(
    exp: Experiment,
    name: str,
    kind: str,
    model: Model,
    section: Sft | Distill,
    rows: dict[str, Stage],
    start: Stage | None = None,
) -> Stage:
    training = section.model_dump(mode="json", exclude={"select_on_dev"})
    if isinstance(section, Distill):
        training["objective"] = canonical_objective(section)
    config = {"kind": kind, "model": model.model_dump(mode="json"), "training": training, "seed": exp.seed}
    identity = {**config, "model": _model_identity(model)}
    inputs = rows | ({"base/0": start} if start else {})
    train = exp.runtime.train
    return Stage(
        name,
        lazy("plad_ray.train.run"),
        config,
        inputs,
        identity,
        version=2,
        cpus=train.workers * train.cpus_per_worker,
        gpus=train.workers * train.gpus_per_worker,
    )


def canonical_objective(section: Distill) -> dict[str, Any]:
    """Name and every field with its value, defaults included, and the source hash of a class from outside."""
    name = section.objective.name
    fields = asdict(objectives.build(name, section.objective.params))
    return {"name": name, **fields} | ({"source": _source_hash(name)} if ":" in name else {})


def _generate(exp: Experiment, name: str, policies: dict[str, Any], prompts: Stage, inputs: dict[str, Stage]) -> Stage:
    config = {"policies": policies, "generate": exp.generate.model_dump(mode="json"), "seed": exp.seed}
    models = {"teacher": exp.teacher.model if exp.teacher else None, "student": exp.student.model}
    hashed = {n: {**p, "model": _model_identity(models[p["role"]])} for n, p in policies.items()}  # type: ignore[arg-type]
    pools = [getattr(exp.runtime, role) for role in sorted({p["role"] for p in policies.values()})]
    return Stage(
        name,
        lazy("plad_ray.generate.run"),
        config,
        {"prompts": prompts, **inputs},
        {**config, "policies": hashed},
        cpus=sum(p.replicas for p in pools if not p.gpus),
        gpus=sum(p.replicas * p.gpus for p in pools),
    )


def _policy(role: Role, name: str, draws: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": role.model.model_dump(mode="json"), "engine": role.engine, "role": name, "draws": draws}


def _draw(split: str, temperatures: tuple[float, ...], samples: int, limit: int | None) -> dict[str, Any]:
    return {"split": split, "temperatures": list(temperatures), "samples": samples, "limit": limit}


def _import(function: str, name: str, path: str, prompts: Stage) -> Stage:
    if not Path(path).exists():
        raise PladError(f"data.{'pairs' if name == 'pairs' else 'responses'}: {path} does not exist")
    config = {"path": str(Path(path).resolve()), "source": hash_path(Path(path))}
    identity = {"source": config["source"]}
    return Stage(name, lazy("plad_ray.data.imports", function), config, {"prompts": prompts}, identity)


def _model_identity(model: Model) -> dict[str, Any]:
    settings = model.model_dump(mode="json", exclude={"path", "adapter", "revision"})
    return {**settings, "content": model_identity(model)}


def _scorer_identity(exp: Experiment) -> dict[str, str]:
    """Content of a local classifier, source of a ``module:function``."""
    assert exp.scorer is not None
    if exp.scorer.model and Path(exp.scorer.model).exists():
        return {"model": hash_path(Path(exp.scorer.model))}
    return {"source": _source_hash(exp.scorer.name)} if ":" in exp.scorer.name else {}


def _source_hash(name: str) -> str:
    spec = find_spec(name.partition(":")[0])
    if spec is None or spec.origin is None:
        raise PladError(f"{name}: the module cannot be found on the Python path")
    return hash_path(Path(spec.origin))


def _present(inputs: dict[str, Stage | None]) -> dict[str, Stage]:
    return {key: stage for key, stage in inputs.items() if stage is not None}
