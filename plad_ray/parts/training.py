"""What is trained from what: SFT, the tables that distillation reads, the frozen models beside it, distillation."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from plad_ray.config import Distill, Experiment, Model, Pairs, Role, Sft, overlay
from plad_ray.errors import PladError
from plad_ray.parts import data
from plad_ray.parts.common import Made, lazy, model_identity, present, source_hash
from plad_ray.parts.evaluation import select
from plad_ray.parts.generation import generate_arms, generate_round, score
from plad_ray.reward.base import check_wins
from plad_ray.stages import Job, Outcome, Stage

#: the builder of each kind of table that is not there already
BUILDERS = {"pairs": "plad_ray.pairs.build", "lists": "plad_ray.pairs.lists", "rejection": "plad_ray.pairs.rejection"}


def sft(exp: Experiment, name: str, prompts: Stage) -> Stage | None:
    """None when the role needs none."""
    role: Role | None = getattr(exp, name)
    if role is None or role.sft is None:
        return None
    return _train(exp, f"sft-{name}", "sft", role.model, role.sft, {"prompts": prompts})


def tables(exp: Experiment, arms: dict[str, tuple[Pairs, Distill]], made: Made, suffix: str = "") -> dict[str, Stage]:
    """What each arm trains on; arms that want the same share it. An arm that reads references only has none of its own."""
    finished = data.imported_pairs(exp, made.prompts)
    stages: dict[str, Stage] = {}
    found = {}
    for arm, (section, distill) in arms.items():
        kind = distill.objective.built().table
        if kind == "references":
            continue
        if finished is not None and kind == "pairs":
            found[arm] = finished
            continue
        name = (kind if arm == "distilled" else f"{kind}-{arm}") + suffix
        config = {"pairs": section.read_by(kind), "chat": exp.student.model.template == "chat"}
        stage = Stage(name, lazy(BUILDERS[kind]), {**config, "seed": exp.seed}, made.texts)
        found[arm] = stages.setdefault(f"{kind} {config}", stage)
    return found


def adapters(
    exp: Experiment, arms: dict[str, tuple[Pairs, Distill]], made: Made, tables: dict[str, Stage]
) -> dict[str, Stage]:
    """The trained adapter of each arm."""
    found = {}
    for arm, (pairs, section) in arms.items():
        if section.select_on_dev:
            found[arm] = _select_on_dev(exp, arm, section, made, tables.get(arm))
        elif section.rounds > 1:
            found[arm] = _rounds(exp, arm, pairs, section, made, tables.get(arm))
        else:
            found[arm] = distill(exp, arm, section, made, tables.get(arm))
    return found


def distill(exp: Experiment, arm: str, section: Distill, made: Made, table: Stage | None, suffix: str = "") -> Stage:
    """One distillation, and before it those that make the frozen models its objective reads."""
    name = ("distill" if arm == "distilled" else f"distill-{arm}") + suffix
    objective = section.objective.built()
    rows = {"prompts": made.prompts} if table is None or section.prompts else {}
    rows |= present({"pairs": table})
    frozen: dict[str, Model] = {}
    inputs: dict[str, Stage] = {}
    for key, (model, stages) in _frozen(exp, name, section, made, table).items():
        frozen[key] = model
        inputs |= {f"frozen/{key}/{i}": stage for i, stage in enumerate(stages)}
    extra: dict[str, Any] = {}
    if objective.rollout is not None:
        extra["max_new_tokens"] = exp.generate.max_tokens
    return _train(exp, name, "distill", exp.student.model, section, rows | inputs, made.student, frozen, extra)


def _frozen(
    exp: Experiment, name: str, section: Distill, made: Made, table: Stage | None
) -> dict[str, tuple[Model, tuple[Stage, ...]]]:
    """By name, the model and the stages that fold onto it."""
    objective = section.objective.built()
    upstream = objective.upstream()
    found: dict[str, tuple[Model, tuple[Stage, ...]]] = {}
    for key in dict.fromkeys((*objective.logits_of, *objective.logps_of)):
        if key == "teacher":
            if exp.teacher is None:
                from plad_ray.models.tokens import text_only

                raise PladError(
                    f"objective {section.objective.name} ({name}) reads the teacher's logits, so it needs a teacher with "
                    "weights, and the experiment has only text of one: give `teacher`, or use a method that needs no "
                    f"more than text: {', '.join(text_only())}"
                )
            found[key] = exp.teacher.model, () if made.teacher is None else (made.teacher,)
        elif key == "reference":
            found[key] = exp.student.model, made.student
        else:
            changed = overlay(section, upstream[key], f"objective {section.objective.name}, upstream {key}")
            stage = distill(
                exp, f"{name.removeprefix('distill').strip('-') or 'distilled'}-{key}", changed, made, table
            )
            found[key] = exp.student.model, (*made.student, stage)
    return found


def _select_on_dev(exp: Experiment, arm: str, section: Distill, made: Made, table: Stage | None) -> Stage:
    """Train every candidate, let them answer the dev prompts, keep the one with the best win rate (PLaD §4.3)."""
    assert exp.scorer is not None, "the configuration asks for one"
    check_wins(exp.scorer, "distill.select_on_dev")
    trained = {
        f"{arm}-{name}": distill(exp, f"{arm}-{name}", candidate, made, table)
        for name, candidate in section.candidates().items()
    }
    responses = generate_arms(exp, f"dev-responses-{arm}", trained, made.prompts, made.initial, "dev")
    return select(arm, trained, score(exp, f"dev-scores-{arm}", made.prompts, responses))


def _rounds(exp: Experiment, arm: str, pairs: Pairs, section: Distill, made: Made, table: Stage | None) -> Stage:
    """Iterative PLaD (arXiv 2406.02886, §7): the newest adapter writes the student's side of the next round's pairs."""
    newest = distill(exp, arm, section, made, table, "-round1")
    start = made.student
    for number in range(2, section.rounds + 1):
        suffix = f"-round{number}"
        student = (*start, newest)
        name = arm if arm != "distilled" else "student"
        texts = generate_round(exp, f"responses-{name}{suffix}", made.prompts, list(student))
        scores = score(exp, f"scores-{name}{suffix}", made.prompts, texts)
        newer = present({"responses/student": texts, "scores/student": scores})
        now = replace(made, student=student, texts=made.texts | newer)
        table = tables(exp, {arm: (pairs, section)}, now, suffix)[arm]
        newest = distill(exp, arm, section, now, table, suffix)
    return newest


def _train(
    exp: Experiment,
    name: str,
    kind: str,
    model: Model,
    section: Sft | Distill,
    inputs: dict[str, Stage],
    start: tuple[Stage, ...] = (),
    frozen: dict[str, Model] | None = None,
    extra: dict[str, Any] | None = None,
) -> Stage:
    training = section.model_dump(mode="json", exclude={"select_on_dev", "rounds"})
    source: dict[str, str] = {}
    if isinstance(section, Distill):
        training["objective"] = {"name": section.objective.name, **asdict(section.objective.built())}
        source = {"source": source_hash(section.objective.name)} if ":" in section.objective.name else {}
    config = {"kind": kind, "model": model.model_dump(mode="json"), "training": training, "seed": exp.seed}
    config |= extra or {}
    identity = {**config, **source, "model": model_identity(model)}
    if frozen:
        config["frozen"] = {key: m.model_dump(mode="json") for key, m in frozen.items()}
        identity["frozen"] = {key: model_identity(m) for key, m in frozen.items()}
    train = exp.runtime.train
    return Stage(
        name,
        lazy("plad_ray.train.run"),
        config,
        inputs | {f"base/{i}": stage for i, stage in enumerate(start)},
        identity,
        version=2,
        cpus=train.workers * train.cpus_per_worker,
        gpus=train.workers * train.gpus_per_worker,
        run_in_turn=_in_turn,
        in_turn=train.in_turn,
    )


def _in_turn(jobs: list[Job]) -> list[Outcome | PladError]:
    from plad_ray.train.run import run_in_turn

    return run_in_turn(jobs)
