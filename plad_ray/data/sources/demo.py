"""The generated summarisation task as splits: one list of distinct posts, cut in the order test, dev, train, distill.

A longer list starts with a shorter one, so a larger train or distill shard leaves test and dev as they were.
"""

from __future__ import annotations

from itertools import islice

from plad_ray.config import Data, SplitName
from plad_ray.data import demo
from plad_ray.data.rows import Row, short_hash

ORDER: tuple[SplitName, ...] = ("test", "dev", "train", "distill")


def splits(data: Data, seed: int) -> dict[SplitName, list[Row]]:
    """``data.sizes[split]`` rows for every split."""
    examples = iter(demo.generate(sum(data.sizes[split] for split in ORDER), seed, data.facts or demo.FACT_COUNTS))
    return {
        split: [Row(e.prompt, e.reference, short_hash(e.prompt)) for e in islice(examples, data.sizes[split])]
        for split in ORDER
    }
