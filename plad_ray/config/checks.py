"""Whether the texts that an arm's training rows are made of will be there."""

from __future__ import annotations

from collections.abc import Mapping

from plad_ray.config.data import Data
from plad_ray.config.models import Role
from plad_ray.config.pairs import Pairs, Pick
from plad_ray.config.training import Distill

Roles = Mapping[str, Role | None]


def check_table(data: Data, roles: Roles, arm: str, pairs: Pairs, distill: Distill) -> None:
    """Raises ValueError naming the key of ``pairs`` or ``draw`` that would be right."""
    kind = distill.objective.built().table
    for name, candidate in distill.candidates().items():
        other = candidate.objective.built().table
        if other != kind:
            raise ValueError(
                f"distill.select_on_dev.{name} of arm {arm} trains on {other} and the arm on {kind}; candidates share one "
                "table: make it an arm of its own under compare"
            )
    if kind == "references":
        return
    if data.pairs is not None:
        _check_finished(arm, pairs, kind)
    elif kind == "pairs":
        _check_sides(data, roles, arm, pairs)
    elif kind == "lists":
        _check_lists(data, roles, arm, pairs)
    elif kind == "rejection":
        _check_rejection(data, roles, arm, pairs)


def check_full(student: Role, where: str, distill: Distill) -> None:
    """Raises ValueError where ``distill``, or a candidate, is to train all weights of a student that is an adapter or is
    kept in four bits. ``where``: the key of the section."""
    for key, section in {"": distill, **distill.candidates()}.items():
        if section.method != "full":
            continue
        what = f"{where}.select_on_dev.{key}.method" if key else f"{where}.method"
        if student.model.load_in_4bit:
            raise ValueError(f"student.model.load_in_4bit cannot be trained with {what} full; use lora")
        if student.model.adapter is not None:
            raise ValueError(
                f"{what} full trains a whole model and student.model.adapter is none: merge it into its base first, or use "
                "lora"
            )
        if student.sft is not None and student.sft.method == "lora":
            raise ValueError(
                f"{what} full trains a whole model and student.sft.method lora makes an adapter: set student.sft.method "
                "to full too, or use lora for both"
            )


def _check_finished(arm: str, pairs: Pairs, kind: str) -> None:
    if kind != "pairs":
        raise ValueError(
            f"the objective of arm {arm} trains on {kind}, which are made of drawn texts, and data.pairs brings finished "
            "pairs; leave data.pairs out (data.responses imports a teacher's texts)"
        )
    if pairs.reward_share > 0:
        raise ValueError(
            f"pairs.reward_share of arm {arm}: the finished pairs of data.pairs keep their order; set it to 0"
        )
    for name in ("min_self_consistency", "min_agreement"):
        if getattr(pairs, name) is not None:
            raise ValueError(
                f"pairs.{name} of arm {arm} looks at several samples of a prompt, and data.pairs brings finished pairs; "
                "leave it out"
            )


def _check_sides(data: Data, roles: Roles, arm: str, pairs: Pairs) -> None:
    for side in ("chosen", "rejected"):
        _check_drawn(data, roles, f"pairs.{side} of arm {arm}", getattr(pairs, side))
    if pairs.chosen == pairs.rejected:
        raise ValueError(
            f"pairs.chosen and pairs.rejected of arm {arm} are the same text: every pair would be identical"
        )
    if pairs.min_self_consistency is not None:
        _check_samples(data, roles, f"pairs.min_self_consistency of arm {arm}", (pairs.chosen,))
    if pairs.min_agreement is not None:
        _check_agreement(data, roles, f"pairs.min_agreement of arm {arm}", pairs)


def _check_agreement(data: Data, roles: Roles, what: str, pairs: Pairs) -> None:
    sides = (pairs.chosen, pairs.rejected)
    if pairs.reward_share > 0:
        raise ValueError(
            f"{what} asks whether the policies' order can be relied on, and pairs.reward_share {pairs.reward_share:g} "
            "orders pairs against it; use one of the two"
        )
    if len({(side.policy, side.temperature) for side in sides}) == 1:
        raise ValueError(
            f"{what}: pairs.chosen and pairs.rejected are samples of one draw, neither of which is the better one more "
            "often; leave it out"
        )
    _check_samples(data, roles, what, sides)


def _check_samples(data: Data, roles: Roles, what: str, sides: tuple[Pick, ...]) -> None:
    """There are two samples of one of ``sides`` at least, as far as is known: of imported text nothing is."""
    for side in sides:
        role = roles[side.policy]
        imported = side.policy == "teacher" and data.responses is not None
        if imported or (role is not None and side.temperature > 0 and role.draw.samples > 1):
            return
    names = " or ".join(dict.fromkeys(f"{side.policy}.draw.samples" for side in sides))
    raise ValueError(
        f"{what} looks at several samples of a prompt, and one is drawn: raise {names} to 2 or more, at a temperature "
        "above 0 (greedy samples are all the same)"
    )


def _check_lists(data: Data, roles: Roles, arm: str, pairs: Pairs) -> None:
    """Without ``pairs.lists`` there are at least two texts: the teacher's and the student's."""
    if pairs.lists is None:
        return
    for pick in pairs.lists:
        _check_drawn(data, roles, f"pairs.lists of arm {arm}", pick)
    if len(set(pairs.lists)) < 2:
        raise ValueError(f"pairs.lists of arm {arm} must name at least two different texts (or be null: every text)")


def _check_rejection(data: Data, roles: Roles, arm: str, pairs: Pairs) -> None:
    settings = pairs.rejection
    role = roles[settings.policy]
    if role is None or (settings.policy == "teacher" and data.responses is not None):
        return
    for temperature in settings.temperatures or ():
        pick = Pick(policy=settings.policy, temperature=temperature)
        _check_drawn(data, roles, f"pairs.rejection.temperatures of arm {arm}", pick)
    temperatures = settings.temperatures or tuple(t for t in role.draw.temperatures if t > 0)
    pool = sum(role.draw.samples if t > 0 else 1 for t in temperatures)  # greedy texts are all the same
    if pool < 2:
        raise ValueError(
            f"pairs.rejection of arm {arm} chooses among the {settings.policy}'s samples of each prompt, and {pool} is "
            f"drawn: raise {settings.policy}.draw.samples (the paper draws 64 at temperature 0.7 and keeps 8)"
        )


def _check_drawn(data: Data, roles: Roles, what: str, pick: Pick) -> None:
    if data.responses is not None and pick.policy == "teacher":
        return
    role = roles[pick.policy]
    if role is None:
        raise ValueError(f"{what} asks for {pick.policy} text, and there is no {pick.policy}")
    draw = role.draw
    if pick.temperature not in draw.temperatures or pick.sample >= draw.samples:
        raise ValueError(
            f"{what} asks for {pick.policy} text at temperature {pick.temperature:g}, sample {pick.sample}, but "
            f"{pick.policy}.draw makes temperatures {list(draw.temperatures)} × {draw.samples} samples; add it to "
            f"{pick.policy}.draw.temperatures"
        )
