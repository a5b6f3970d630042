"""Who goes where: shares of the given splits, grouped assignment, and the order of rows within a split.

Everything follows from hashes of (split_seed, group) and (seed, prompt_id), never from the order of the source. The paper's
two equal shards of the training set are ``train`` (SFT) and ``distill`` (preference pairs).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from plad_ray.config import Data, SplitName
from plad_ray.data.rows import short_hash
from plad_ray.errors import PladError

#: Splits are cut, and given ones are read, in this order: test rows never depend on the sizes of the shards.
ORDER: tuple[SplitName, ...] = ("test", "dev", "train", "distill")


def shares(
    pool: SplitName,
    rows: int,
    given: Collection[SplitName],
    fractions: Mapping[SplitName, float],
    dev_from_test: int | None = None,
) -> dict[SplitName, float]:
    """How many rows of a given split each of our splits gets (not yet rounded).

    A split that is not given is cut from ``train`` (from ``distill`` when there is no train), which shares its rows in
    proportion to ``fractions``. ``dev_from_test``: cut a missing dev of so many rows from a given test instead, at most
    half of it.
    """
    from_test = dev_from_test is not None and "test" in given and "dev" not in given
    if pool == "test" and from_test:
        assert dev_from_test is not None
        dev = min(dev_from_test, rows // 2)
        return {"test": rows - dev, "dev": dev}
    donor: SplitName = "train" if "train" in given else "distill"
    if pool != donor:
        return {pool: rows}
    elsewhere = {*given, *(("dev",) if from_test else ()), *(("train",) if donor == "distill" else ())} - {donor}
    weights = {split: fractions.get(split, 0.0) for split in ORDER if split not in elsewhere}
    total = sum(weights.values())
    return {split: rows * weight / total for split, weight in weights.items() if weight} if total else {pool: rows}


def seed_decides_test(data: Data) -> bool:
    """Whether the experiment's seed decides which rows of the source are test, so that one seed trains and tunes on what
    another is tested on.

    Not with ``split_seed``, a test split of the source's own, or the demo, whose posts are new for every seed. The splits of
    a hub data set are known before it is read only where ``hub_splits`` names them.
    """
    if data.source == "demo" or data.split_seed is not None:
        return False
    given = {*data.splits_paths, *data.hub_splits}
    if data.source == "hh" and (data.group_split or "dev" not in given):
        return True
    return "test" not in given and data.fractions.get("test", 0) > 0


def assign(groups: Sequence[str], quotas: Mapping[SplitName, float], seed: int) -> list[SplitName]:
    """A split for every row, whole groups only, each split as near to its share of ``quotas`` as groups allow.

    Groups are sorted by a hash of (seed, group) and cut at cumulative row counts. Train and distill of equal quotas
    differ by at most the rows of one group. Every split with a quota gets at least one group. Raises PladError when
    there are fewer groups than splits.
    """
    wanted = [split for split in ORDER if quotas.get(split, 0) > 0]
    counts = Counter(groups)
    if len(counts) < len(wanted):
        raise PladError(
            f"data: {len(groups)} rows in {len(counts)} groups cannot fill the splits {', '.join(wanted)}; give more "
            "data, set data.fractions of a split to 0, or data.group_split: false"
        )
    ordered = sorted(counts, key=lambda group: (short_hash(seed, "split", group), group))
    place: dict[str, SplitName] = {}
    left, start = len(groups), 0
    for index, split in enumerate(wanted):
        target = left * quotas[split] / sum(quotas[s] for s in wanted[index:])
        stop = len(ordered) - (len(wanted) - index - 1)  # one group at least for each of the splits to come
        taken, first = 0, start
        while start < stop and (start == first or stop == len(ordered) or taken + counts[ordered[start]] / 2 <= target):
            taken += counts[ordered[start]]
            place[ordered[start]] = split
            start += 1
        left -= taken
    return [place[group] for group in groups]


def ranks(ids: Sequence[str], seed: int) -> list[int]:
    """Indices of ``ids`` in the order of a hash of (seed, id): the order of rows in every split.

    The first n rows of a split lie within its first n + 1, so pilots and data-scaling studies are nested.
    """
    keys = [short_hash(seed, "order", name) for name in ids]
    return sorted(range(len(ids)), key=lambda i: (keys[i], ids[i]))
