"""Shares, grouped assignment and nesting, with values worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from plad_ray.config import Data
from plad_ray.data import splits
from plad_ray.data.rows import short_hash
from plad_ray.errors import PladError

FRACTIONS = {"train": 0.45, "distill": 0.45, "dev": 0.05, "test": 0.05}


def test_hash_is_the_same_on_every_machine() -> None:
    # sha256 of the eight bytes ["a", 1]
    assert short_hash("a", 1) == "2657442bb4a48d62"


@pytest.mark.parametrize(
    ("pool", "given", "dev", "expected"),
    [
        ("train", {"train"}, None, {"train": 90, "distill": 90, "dev": 10, "test": 10}),
        ("train", {"train", "dev", "test"}, None, {"train": 100, "distill": 100}),
        ("test", {"train", "dev", "test"}, None, {"test": 200}),
        ("train", {"train", "test"}, 30, {"train": 100, "distill": 100}),  # HH: dev comes from test
        ("test", {"train", "test"}, 30, {"test": 170, "dev": 30}),
        ("test", {"train", "test"}, 500, {"test": 100, "dev": 100}),  # at most half
        ("distill", {"distill", "dev", "test"}, None, {"distill": 200}),  # no train: an SFT is not wanted
    ],
)
def test_shares(pool, given, dev, expected) -> None:
    assert splits.shares(pool, 200, given, FRACTIONS, dev) == pytest.approx(expected)


def test_train_with_dev_missing_shares_in_proportion() -> None:
    shares = splits.shares("train", 190, {"train", "test"}, FRACTIONS)
    assert shares == pytest.approx({"train": 90, "distill": 90, "dev": 10})


def groups_of(sizes: list[int]) -> list[str]:
    return [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [[1] * 999, [7] * 100, [1, 2, 3, 4, 5] * 30, [40, 1, 1, 1, 30, 2, 2]])
def test_groups_stay_whole_and_shards_equal(sizes: list[int], seed: int) -> None:
    groups = groups_of(sizes)
    assigned = splits.assign(groups, {s: f * len(groups) for s, f in FRACTIONS.items()}, seed)
    pairs = set(zip(groups, assigned, strict=True))
    assert len(pairs) == len(set(groups))  # one split a group
    counts = Counter(assigned)
    assert set(counts) == set(FRACTIONS)
    assert abs(counts["train"] - counts["distill"]) <= max(sizes)
    if max(sizes) == 1:
        assert abs(counts["test"] - 0.05 * len(groups)) <= 1


def test_assignment_ignores_row_order_and_depends_on_seed() -> None:
    groups = groups_of([1] * 50)
    quotas = {"train": 25.0, "distill": 25.0}
    place = dict(zip(groups, splits.assign(groups, quotas, 0), strict=True))
    backwards = groups[::-1]
    assert dict(zip(backwards, splits.assign(backwards, quotas, 0), strict=True)) == place
    assert dict(zip(groups, splits.assign(groups, quotas, 1), strict=True)) != place


def test_other_rows_move_a_group_only_at_a_boundary() -> None:
    groups = groups_of([1] * 1000)
    quotas = {"train": 1.0, "distill": 1.0}
    place = dict(zip(groups, splits.assign(groups, quotas, 0), strict=True))
    more = [*groups, *(f"new{i}" for i in range(10))]
    moved = sum(place[g] != s for g, s in zip(more, splits.assign(more, quotas, 0), strict=True) if g in place)
    assert moved <= 10


HELD_OUT = {"train": 0.5, "distill": 0.5, "dev": 0.0, "test": 0.0}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"source": "files", "path": "x.jsonl"}, True),
        ({"source": "files", "path": "x.jsonl", "split_seed": 0}, False),
        ({"source": "files", "splits_paths": {"train": "a"}}, True),
        ({"source": "files", "splits_paths": {"train": "a", "dev": "b"}}, True),
        ({"source": "files", "splits_paths": {"train": "a", "test": "b"}}, False),  # dev is cut, from what is not test
        ({"source": "files", "hub": "x/y", "hub_splits": {"train": "t", "test": "v"}}, False),
        ({"source": "tldr", "fractions": HELD_OUT}, False),
        ({"source": "tldr"}, True),
        ({"source": "hh", "fractions": HELD_OUT}, True),  # its dialogues are split anew
        ({"source": "hh", "hub_splits": {"train": "train", "dev": "valid", "test": "test"}}, True),
        ({"source": "hh", "splits_paths": {"train": "a", "dev": "b", "test": "c"}, "group_split": False}, False),
        (
            {"source": "hh", "splits_paths": {"train": "a", "test": "c"}, "group_split": False},
            True,
        ),  # dev is half of test
        ({"source": "demo", "sizes": {"train": 1, "distill": 1, "dev": 1, "test": 1}}, False),
    ],
)
def test_whose_test_split_depends_on_the_seed(section, expected) -> None:
    assert splits.seed_decides_test(Data.model_validate(section)) is expected


def test_too_few_groups_is_an_error() -> None:
    with pytest.raises(PladError, match=r"30 rows in 3 groups cannot fill the splits test, dev, train, distill"):
        splits.assign(groups_of([10] * 3), FRACTIONS, 0)


def test_ranks_are_nested_and_stable() -> None:
    ids = [f"id{i}" for i in range(100)]
    order = [ids[i] for i in splits.ranks(ids, 3)]
    assert sorted(order) == sorted(ids) and order != ids
    assert [ids[::-1][i] for i in splits.ranks(ids[::-1], 3)] == order
    half = [i for i in ids if i in set(order[:50])]
    assert [half[i] for i in splits.ranks(half, 3)] == order[:50]
