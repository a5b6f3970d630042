"""Fresh samples: drawn from live weights, by row and step alone, exactly as their log-probs say."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from test_frozen import adapted, state
from train_jobs import column, distill_job, session, start

from plad_ray.config import Model
from plad_ray.models.load import load_model
from plad_ray.models.policy import resolve
from plad_ray.models.sampling import Mixture, sample
from plad_ray.objectives import Rollout, build
from plad_ray.train.frozen import FrozenModels, load_frozen
from plad_ray.train.layout import CONCATENATED
from plad_ray.train.loop import _asked, batches_of, checkpoint_steps, one_step
from plad_ray.train.rollouts import Rollouts
from tests.conftest import save_tiny_model

pytestmark = pytest.mark.usefixtures("gloo")
MINILLM = {"name": "minillm", "teacher_mix": 0.3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("teacher"), seed=1, vocab_size=50)


def job_of(store, base, teacher, name="job", objective=MINILLM, **more):
    lora = {"r": 4, "dropout": 0.5, "target_modules": "all-linear"}
    return distill_job(store, base, name, frozen={"teacher": teacher}, objective=objective, **({"lora": lora} | more))


def test_samples_change_after_one_update_and_not_without(store, tiny_llama, teacher):
    """Same step, rows and random numbers; dropout, off while sampling, would make the first two differ."""
    run = start(job_of(store, tiny_llama, teacher, learning_rate=5e-2))
    before = state(run.engine.module.model)
    asked = _asked(run, 0)

    def draw():
        run.rollouts.draw(asked)
        return dict(run.rollouts.drawn)

    first, again = draw(), draw()
    assert first == again and len(first) == 8
    assert state(run.engine.module.model) == before and run.engine.module.training
    one_step(run, 0, 0.0)
    after = draw()
    assert after.keys() == first.keys() and any(after[key][0] != first[key][0] for key in first)


def test_samples_depend_on_neither_micro_batches_nor_workers(store, tiny_llama, teacher):
    run = start(job_of(store, tiny_llama, teacher, objective={**MINILLM, "rollout_every": 2}))

    def drawn(**changes):
        found = {}
        for rank in range(changes.get("workers", 1)):
            run.rollouts.draw(_asked(replace(run, **changes, rank=rank), 0))
            found |= run.rollouts.drawn
        return {key: ids for key, (ids, _) in found.items()}

    whole = drawn(micro_batch=8)
    assert sorted({step for step, _ in whole}) == [0, 1] and len(whole) == 16
    assert drawn(micro_batch=1) == whole
    assert drawn(micro_batch=3, workers=2) == whole
    run.rollouts.seed += 1
    assert drawn(micro_batch=8) != whole


def test_log_probs_are_those_of_the_mixture(store, tiny_llama, teacher):
    """log(0.3·p + 0.7·q) by plain forward passes of both models in float64, over the 43 ids that both have."""
    run = start(job_of(store, tiny_llama, teacher))
    (batch,) = batches_of(replace(run, micro_batch=8, layout=CONCATENATED), 0)
    models = [load_model(resolve(Model(path=str(folder)))).double() for folder in (teacher, tiny_llama)]
    with torch.no_grad():
        p, q = (
            m(input_ids=batch.ids_SL, attention_mask=batch.attention_SL).logits[..., :43].softmax(-1) for m in models
        )
    mixed = (0.3 * p + 0.7 * q).log().flatten(0, 1)[batch.source_N].gather(-1, batch.target_N[:, None])[:, 0]
    got = batch.known["sampled_logp"].flatten()[batch.place_N]
    torch.testing.assert_close(got.double(), mixed, rtol=1e-5, atol=1e-5)
    assert batch.target_N.max() < 43


def test_a_teacher_on_the_students_base_mixes_like_one_of_its_own(tiny_llama, tmp_path):
    policy = resolve(Model(path=str(tiny_llama)))
    folder = adapted(policy, tmp_path / "adapter", 5)
    model = Model(path=str(tiny_llama), adapter=str(folder))
    found = []
    for beside in (True, False):
        student = load_model(resolve(Model(path=str(tiny_llama), adapter=str(adapted(policy, tmp_path / "own", 6)))))
        frozen = FrozenModels(own={"teacher": load_model(resolve(model))})
        if beside:
            frozen = load_frozen(student, policy, {"teacher": (resolve(model), model)})
            assert frozen.adapters == {"teacher": "teacher"}
        mixture = Mixture(frozen.own.get("teacher", student), 0.5, partial(frozen.view, "teacher", student))
        found.append(sample(student, [[5, 6, 7], [8]], [1.0, 1.0], [1, 2], 12, (2,), mixture=mixture))
    alone = sample(student, [[5, 6, 7], [8]], [1.0, 1.0], [1, 2], 12, (2,))
    for (ids, logps), (other_ids, other_logps), (_, plain) in zip(*found, alone, strict=True):
        assert ids == other_ids and logps == pytest.approx(other_logps, abs=1e-6)
        assert logps != pytest.approx(plain, abs=1e-3)


def test_ids_beyond_the_vocabulary_are_never_drawn(tiny_llama):
    """Half of the probability lies on ids ≥ 20; the log-probs are of what is left."""
    model = load_model(resolve(Model(path=str(tiny_llama))))
    ids, logps = sample(model, [[5, 6, 7]], [1.0], [3], 40, (), vocabulary=20)[0]
    assert max(ids) < 20 and len(ids) == 40
    with torch.no_grad():
        first = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1, :20].double().log_softmax(-1)
    assert logps[0] == pytest.approx(first[ids[0]].item(), abs=1e-6)


def test_resume_is_exact_when_samples_serve_several_steps(store, tiny_llama, teacher, tmp_path):
    """``checkpoint_every`` 1 becomes 2: within a window the samples come from weights that are gone."""
    settings = {"objective": {**MINILLM, "rollout_every": 2}, "train": {"checkpoint_every": 1, "zero_stage": 2}}
    lines = session(job_of(store, tiny_llama, teacher, "unbroken", **settings), keep=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "4"]
    again = session(job_of(store, tiny_llama, teacher, "resumed", **settings), resume=tmp_path / "2")
    for name in ("loss", "grad_norm", "importance", "lengths/sampled"):
        torch.testing.assert_close(column(again, name), column(lines, name), rtol=1e-6, atol=1e-6)
    assert column(lines, "importance")[1] != 1.0, "the second step's weights are newer than its samples"


@pytest.mark.parametrize(("every", "window", "steps"), [(1, 3, 3), (4, 3, 6), (6, 3, 6), (5, 1, 5)])
def test_checkpoints_lie_between_windows(every, window, steps):
    assert checkpoint_steps(every, build("minillm", {"rollout_every": window})) == steps


def test_share_of_steps_on_samples():
    """λ = 0.3 over 2,000 steps, the same steps on every worker, others with another seed."""

    def wanted(seed: int, share: float = 0.3) -> list[bool]:
        rollouts = Rollouts(Rollout(share=share), None, (2,), 4, seed)  # type: ignore[arg-type]
        return [rollouts.wanted(step) for step in range(2000)]

    assert abs(sum(wanted(0)) / 2000 - 0.3) < 0.03
    assert wanted(0) == wanted(0) != wanted(1)
    assert all(wanted(0, 1.0))
