"""The ``pairs`` section: which texts are set against each other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from plad_ray.config.base import Count, Fraction, Positive, Section, Temperature


class Pick(Section):
    """One side of a pair: which policy's text at which temperature."""

    policy: Literal["teacher", "student"]
    temperature: Temperature
    sample: Annotated[int, Field(ge=0)] = 0


class Rejection(Section):
    """Statistical rejection sampling (RSO, arXiv 2309.06657, §3): which drawn texts are kept, to be paired."""

    policy: Literal["teacher", "student"] = "student"
    temperatures: tuple[Temperature, ...] | None = Field(None, description="of the pool; null: all drawn above 0")
    beta: Positive = Field(0.5, description="in units of the reward: small keeps the best, large the first")
    keep: Annotated[int, Field(ge=2)] = Field(8, description="texts a prompt; half as many pairs")


class Pairs(Section):
    """How training rows are made of texts; an arm reads the keys of the kind of rows that its objective trains on."""

    chosen: Pick = Pick(policy="teacher", temperature=0.7)
    rejected: Pick = Pick(policy="student", temperature=0.7)
    reward_share: Fraction = Field(0.0, description="share of the pairs that the reward orders; nested as it grows")
    min_self_consistency: Fraction | None = Field(
        None,
        exclude_if=lambda value: value is None,  # pairs that were made before keep their name
        description="drop prompts on which the chosen side's policy agrees less with itself: mean ROUGE-L F1 over all pairs "
        "of its samples at that temperature",
    )
    min_agreement: Fraction | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="drop prompts on which, of all combinations of the two sides' samples, the chosen side's is the better "
        "one by the scorer in a smaller share (ties count half)",
    )
    lists: tuple[Pick, ...] | None = Field(None, description="candidates of list-wise objectives; null: every text")
    rejection: Rejection = Rejection()
    drop_truncated_chosen: bool = True
    limit: Count | None = Field(None, description="at most this many rows (a nested prefix)")

    def read_by(self, kind: str) -> dict[str, Any]:
        """The settings that a table of ``kind`` (pairs, lists, rejection) depends on."""
        others = set().union(*READ.values()) - READ[kind]
        return self.model_dump(mode="json", exclude=others)


#: beside drop_truncated_chosen and limit, which every kind reads
READ = {
    "pairs": {"chosen", "rejected", "reward_share", "min_self_consistency", "min_agreement"},
    "lists": {"lists"},
    "rejection": {"rejection"},
}


#: of an arm or a candidate, which names a policy, an adapter and a stage
NAME = "[A-Za-z0-9_-]+"


class Arm(Section):
    """A further training run on the same responses: partial sections laid over `pairs` and `distill`."""

    pairs: dict[str, Any] = Field(default_factory=dict)
    distill: dict[str, Any] = Field(default_factory=dict)
