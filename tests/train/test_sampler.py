"""Which rows a step sees, and the learning rate: pure functions of the step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from plad_ray.config import Training
from plad_ray.errors import PladError
from plad_ray.train.sampler import Plan, deal, stateless_seed
from plad_ray.train.schedule import learning_rate


def test_every_epoch_sees_every_row_once_in_its_own_order():
    plan = Plan(rows=10, batch=4, epochs=3, seed=0)
    assert plan.steps == 8
    stream = [i for step in range(plan.steps) for i in plan.step_rows(step)]
    epochs = [stream[0:10], stream[10:20], stream[20:30]]
    assert len(stream) == 30 and all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert stream != [i for step in range(8) for i in Plan(10, 4, 3, 1).step_rows(step)]


def test_fractional_epochs():
    plan = Plan(rows=10, batch=4, epochs=1.5, seed=0)
    assert (plan.total, plan.steps) == (15, 4)
    assert [len(plan.step_rows(step)) for step in range(4)] == [4, 4, 4, 3]
    assert [plan.epoch(step) for step in range(4)] == [0.4, 0.8, 1.2, 1.5]
    assert Plan(10, 64, 0.01, 0).steps == 1


def test_nothing_to_train_on_is_refused():
    with pytest.raises(PladError, match="no row"):
        Plan(0, 4, 1, 0)


@pytest.mark.parametrize(("workers", "micro_batch"), [(1, 64), (1, 3), (2, 2), (3, 4), (16, 1)])
def test_dealing_keeps_every_row_and_gives_all_workers_as_many_micro_batches(workers, micro_batch):
    lengths = np.array([5, 1, 9, 3, 7, 2, 8, 4, 6, 10, 11])
    dealt = deal(list(range(11)), lengths, workers, micro_batch)
    assert Counter(i for slab in dealt for share in slab for i in share) == Counter(range(11))
    assert all(len(slab) == workers for slab in dealt)
    assert max(len(share) for slab in dealt for share in slab) <= micro_batch
    assert len(dealt) == -(-11 // (workers * micro_batch))
    order = [lengths[i] for slab in dealt for i in sorted((i for s in slab for i in s), key=lambda i: -lengths[i])]
    assert order == sorted(order, reverse=True), "rows of like length share a micro-batch"


def test_stateless_seeds_differ_in_every_part():
    seeds = {stateless_seed(*parts) for parts in np.ndindex(3, 3, 3, 3)}
    assert len(seeds) == 81 and all(0 <= seed < 2**63 for seed in seeds)
    assert stateless_seed(1, 2) == stateless_seed(1, 2)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("constant", 0.5, [0.5, 1, 1, 1]),
        ("linear", 0.5, [0.5, 1, 1, 0.5]),
        ("cosine", 0.0, [1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_learning_rates(schedule, warmup, expected):
    training = Training(schedule=schedule, warmup_ratio=warmup, learning_rate=1.0)
    assert [learning_rate(training, step, 4) for step in range(4)] == pytest.approx(expected)
