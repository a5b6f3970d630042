"""The whole experiment file, and what only makes sense across sections."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from plad_ray.config.averaging import Averaging
from plad_ray.config.base import Section, overlay
from plad_ray.config.checks import check_full, check_table
from plad_ray.config.data import Data
from plad_ray.config.evaluation import Evaluate, Scorer
from plad_ray.config.models import Generate, Role
from plad_ray.config.pairs import NAME, Arm, Pairs
from plad_ray.config.runtime import Runtime
from plad_ray.config.training import Distill, Objective


class Experiment(Section):
    """One YAML. See jobs/ for complete examples."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$")]
    seed: int = 0
    data: Data
    teacher: Role | None = Field(None, description="may be absent when data.responses or data.pairs brings its text")
    student: Role
    generate: Generate = Generate()
    pairs: Pairs = Pairs()
    distill: Distill = Distill()
    compare: dict[str, Arm] = Field({}, description="further arms by name, shown beside the main one")
    scorer: Scorer | None = None
    evaluate: Evaluate = Evaluate()
    merge: Averaging | None = Field(None, description="how `plad merge` averages with the start; null: not at all")
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _combinations(self) -> Experiment:
        if self.teacher is None and not (self.data.responses or self.data.pairs):
            raise ValueError("teacher is missing: give a teacher, or its text by data.responses or data.pairs")
        self._check_api()
        for name, (pairs, distill) in self.arms().items():
            check_table(self.data, {"teacher": self.teacher, "student": self.student}, name, pairs, distill)
            check_full(self.student, "distill" if name == "distilled" else f"compare.{name}.distill", distill)
        if self.merge is not None and self.distill.method == "full":
            raise ValueError(
                "merge averages adapters, and distill.method full makes none; leave merge out, or use lora"
            )
        if self.teacher == self.student:
            raise ValueError("teacher and student are the same model with the same SFT: every pair would be noise")
        named = {f"compare.{n}": n for n in self.compare}
        named |= {f"distill.select_on_dev.{n}": n for n in self.distill.candidates()}
        for key, name in named.items():
            if not re.fullmatch(NAME, name):
                raise ValueError(f"{key}: a name is made of letters, digits, - and _; choose another")
        needs_scorer = [
            ("distill.select_on_dev", bool(self.distill.select_on_dev)),
            ("merge.top below 1", self.merge is not None and self.merge.top < 1),
            *((f"objective of arm {n}", d.objective.built().needs_scores) for n, (_, d) in self.arms().items()),
            *((f"pairs.reward_share of arm {n}", p.reward_share > 0) for n, (p, _) in self.arms().items()),
            *((f"pairs.min_agreement of arm {n}", p.min_agreement is not None) for n, (p, _) in self.arms().items()),
        ]
        for what, needed in needs_scorer:
            if needed and self.scorer is None:
                raise ValueError(f"{what} needs scores: set scorer.name (demo, rouge, classifier or module:function)")
        if self.student.model.load_in_4bit and self.runtime.train.zero_stage == 3:
            raise ValueError("student.model.load_in_4bit does not work with runtime.train.zero_stage 3; use 0, 1 or 2")
        return self

    def _check_api(self) -> None:
        if self.student.model.api is not None:
            raise ValueError(
                "student.model.api: a model behind an API has no weights to train; give student.model.path"
            )
        api = self.teacher is not None and self.teacher.model.api is not None
        for name in ("student",) if api else ("student", "teacher"):
            if getattr(self.runtime, name).api is not None:
                raise ValueError(f"runtime.{name}.api is set, but {name}.model is not behind an API")
        if not api:
            return
        if self.generate.top_k > 0:
            raise ValueError(
                "generate.top_k is not in the OpenAI protocol, which the teacher is asked by; set it to 0 (what the "
                "endpoint knows beside the protocol goes into teacher.model.api.extra_body)"
            )
        for arm, (_, distill) in self.arms().items():
            for section in distill.with_candidates():
                if _reads_teacher(section.objective):
                    from plad_ray.models.tokens import text_only

                    raise ValueError(
                        f"objective {section.objective.name} of arm {arm} reads the teacher's logits, and an API gives "
                        f"text only; methods that need no more: {', '.join(text_only())}"
                    )

    @model_validator(mode="after")
    def _rounds_make_new_rows(self) -> Experiment:
        for name, (pairs, distill) in self.arms().items():
            if all(section.rounds == 1 for section in distill.with_candidates()):
                continue
            if distill.select_on_dev:
                raise ValueError(
                    "distill.rounds and distill.select_on_dev exclude each other: choose first, then iterate"
                )
            if not _reads_student(distill.objective, pairs) or self.data.pairs is not None:
                where = "distill" if name == "distilled" else f"compare.{name}.distill"
                raise ValueError(
                    f"{where}.rounds {distill.rounds}: {distill.objective.name} trains on no text here that this "
                    "experiment's student writes, so every round would see the same rows; set it to 1"
                )
        return self

    def arms(self) -> dict[str, tuple[Pairs, Distill]]:
        """Every training run by name: ``distilled`` (the main one) and those under ``compare``."""
        arms = {"distilled": (self.pairs, self.distill)}
        for name, arm in self.compare.items():
            if name in ("distilled", "teacher", "student", "reference"):
                raise ValueError(f"compare.{name}: the name is taken; choose another")
            base = self.distill.model_copy(update={"select_on_dev": {}})
            arms[name] = (
                overlay(self.pairs, arm.pairs, f"compare.{name}.pairs"),
                overlay(base, arm.distill, f"compare.{name}.distill"),
            )
        return arms


def _reads_student(objective: Objective, pairs: Pairs) -> bool:
    """Whether an arm's rows hold text of the student."""
    table = objective.built().trains_on
    sides = {"references": (), "chosen": (pairs.chosen,), "pairs": (pairs.chosen, pairs.rejected)}.get(table)
    return sides is None or any(side.policy == "student" for side in sides)


def _reads_teacher(objective: Objective) -> bool:
    built = objective.built()
    return "teacher" in (*built.logits_of, *built.logps_of)
