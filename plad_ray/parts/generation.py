"""Who says what to which prompts: the generate stages, and the scores of what they said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plad_ray.artifacts import hash_path
from plad_ray.config import Experiment, Role, SplitName
from plad_ray.parts.common import Made, lazy, model_identity, present, source_hash
from plad_ray.stages import Stage


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
    """Every distilled student on the prompts of ``split``: adapters are served side by side on their base, whole models one
    after another."""
    draws = [_draw(split, exp.evaluate.temperatures, 1, exp.evaluate.limit)]
    policies = {arm: _policy(exp.student, "student", draws) for arm in adapters}
    inputs = {f"{arm}/{i}": s for arm, a in adapters.items() for i, s in enumerate(x for x in (student, a) if x)}
    return _generate(exp, name, policies, prompts, inputs)


def generate_round(exp: Experiment, name: str, prompts: Stage, student: list[Stage]) -> Stage:
    """The newest student's own text for the next round's pairs; ``student`` holds its stages, oldest first."""
    draws = [_draw("distill", exp.student.draw.temperatures, exp.student.draw.samples, None)]
    policies = {"student": _policy(exp.student, "student", draws)}
    return _generate(exp, name, policies, prompts, {f"student/{i}": stage for i, stage in enumerate(student)})


def generate_proxy(
    exp: Experiment, name: str, prompts: Stage, student: list[Stage], limit: int, temperature: float
) -> Stage:
    """What a distilled student says to the first ``limit`` distillation prompts; ``student`` as in ``generate_round``."""
    policies = {"student": _policy(exp.student, "student", [_draw("distill", (temperature,), 1, limit)])}
    return _generate(exp, name, policies, prompts, {f"student/{i}": stage for i, stage in enumerate(student)})


def generate_samples(
    exp: Experiment,
    name: str,
    made: Made,
    policies: Sequence[str],
    splits: Sequence[str],
    temperatures: tuple[float, ...],
    samples: int,
    limit: int | None,
) -> Stage:
    """Several texts a prompt of the teacher or the student before distillation (``policies``)."""
    draws = [_draw(split, temperatures, samples, limit) for split in splits]
    asked = {n: _policy(role, n, draws) for n in policies if (role := getattr(exp, n)) is not None}
    stages = {"teacher": () if made.teacher is None else (made.teacher,), "student": made.student}
    inputs = {f"{n}/{i}": stage for n in asked for i, stage in enumerate(stages[n])}
    return _generate(exp, name, asked, made.prompts, inputs)


def score(exp: Experiment, name: str, prompts: Stage, responses: Stage, imported: Stage | None = None) -> Stage | None:
    if exp.scorer is None:
        return None
    config = {"scorer": exp.scorer.model_dump(mode="json")}
    identity = {"scorer": {**config["scorer"], **_scorer_identity(exp)}}
    inputs = present({"prompts": prompts, "responses": responses, "imported": imported})
    return Stage(name, lazy("plad_ray.reward.run"), config, inputs, identity, 2, cpus=1)


def _generate(exp: Experiment, name: str, policies: dict[str, Any], prompts: Stage, inputs: dict[str, Stage]) -> Stage:
    config = {"policies": policies, "generate": exp.generate.model_dump(mode="json"), "seed": exp.seed}
    models = {"teacher": exp.teacher.model if exp.teacher else None, "student": exp.student.model}
    hashed = {n: {**p, "model": model_identity(models[p["role"]])} for n, p in policies.items()}  # type: ignore[arg-type]
    turns = exp.runtime.turns(sorted({p["role"] for p in policies.values()}))
    several = len(policies) > len({p["role"] for p in policies.values()})
    together = [[getattr(exp.runtime, role) for role in turn] for turn in turns]
    return Stage(
        name,
        lazy("plad_ray.generate.run"),
        config,
        {"prompts": prompts, **inputs},
        {**config, "policies": hashed},
        version=3 if several else 2,  # since 3 policies of one role take turns
        cpus=max(sum(p.replicas for p in pools if not p.gpus) for pools in together),
        gpus=max(sum(p.replicas * p.gpus for p in pools) for pools in together),
    )


def _policy(role: Role, name: str, draws: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": role.model.model_dump(mode="json"), "engine": role.engine, "role": name, "draws": draws}


def _draw(split: str, temperatures: tuple[float, ...], samples: int, limit: int | None) -> dict[str, Any]:
    return {"split": split, "temperatures": list(temperatures), "samples": samples, "limit": limit}


def _scorer_identity(exp: Experiment) -> dict[str, str]:
    """Content of a local classifier, source of a ``module:function``."""
    assert exp.scorer is not None
    if exp.scorer.model and Path(exp.scorer.model).exists():
        return {"model": hash_path(Path(exp.scorer.model))}
    return {"source": source_hash(exp.scorer.name)} if ":" in exp.scorer.name else {}
