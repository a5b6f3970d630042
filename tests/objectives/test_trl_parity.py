"""The losses of TRL's own trainers on one collated batch, against ours through the forward pass that training uses."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from plad_ray.config import Model
from plad_ray.models.load import load_model, load_tokenizer
from plad_ray.models.policy import resolve
from plad_ray.objectives import build
from plad_ray.train.frozen import FrozenModels
from plad_ray.train.layout import Row, concatenate
from plad_ray.train.logprobs import ResponseValues
from plad_ray.train.rows import pair_rows
from tests.conftest import save_tiny_model

pytest.importorskip("trl")
#: prompts of unlike length, and texts of which now the chosen, now the rejected one is longer
PAIRS = [
    {"prompt": "w1 w2 w3", "chosen": " w3", "rejected": " w4 w5 w6"},
    {"prompt": "w7", "chosen": " w7 w1 w2 w3", "rejected": " w9"},
    {"prompt": "w11 w12 w13 w14 w15", "chosen": " w15 w11", "rejected": " w2 w3"},
    {"prompt": "w20 w21", "chosen": " w21 w22 w23", "rejected": " w24 w25 w26 w27"},
]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Student and reference: two random models with one tokenizer. Weights are large, so that log-probs differ."""
    settings = {"initializer_range": 0.2}
    return [
        resolve(Model(path=str(save_tiny_model(tmp_path_factory.mktemp("trl"), seed=s, **settings)))) for s in (1, 2)
    ]


def ours(policies, name: str, params: dict, pairs: list[dict]) -> tuple[float, dict[str, float], list[Row]]:
    objective = build(name, params)
    tokenizer, student, reference = load_tokenizer(policies[0]), *(load_model(policy) for policy in policies)
    columns = {f"{side}_{what}": None for side in ("chosen", "rejected") for what in ("finish_reason", "score")}
    table = pa.Table.from_pylist([{**pair, **columns, "prompt_id": str(i)} for i, pair in enumerate(pairs)])
    rows = pair_rows(table, tokenizer, Model(path=policies[0].base), build("plad_rank", {}))
    module = ResponseValues(student, objective, FrozenModels(own={"reference": reference})).eval()
    batch = concatenate(rows, pad=0)
    values = module(batch) | {"reference_logp": module.frozen_logps("reference", batch)}
    terms, counts = objective.loss(values, batch.mask_BKT, batch.scores_BK), objective.counts(batch.mask_BKT)
    loss = torch.stack([terms.sums[term] / counts[term] for term in counts]).sum()
    return loss.item(), {name: float(a / b) for name, (a, b) in terms.metrics.items()}, rows


def common(tmp_path, pairs: list[dict]) -> dict:
    plain = {"report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": 64}
    return {"output_dir": str(tmp_path), "per_device_train_batch_size": len(pairs), **plain}


def theirs(trainer) -> tuple[float, dict]:
    """Loss of the whole dataset in one batch, by the trainer's own collator and ``compute_loss``."""
    trainer.model.eval()  # tiny models have no dropout; this is for the rest
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch).item()
    assert loss > 0.01, "a loss of 0 would agree with anything"
    return loss, batch


def dpo(policies, tmp_path, pairs: list[dict], **settings):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    student, reference = (load_model(policy) for policy in policies)
    return DPOTrainer(
        model=student,
        ref_model=reference,
        args=DPOConfig(**common(tmp_path, pairs), **settings),
        train_dataset=Dataset.from_list(pairs),
        processing_class=load_tokenizer(policies[0]),
    )


def cpo(policies, tmp_path, **settings):
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer(
        model=load_model(policies[0]),
        args=CPOConfig(**common(tmp_path, PAIRS), **settings),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=load_tokenizer(policies[0]),
    )


def test_dpo_and_its_metrics(policies, tmp_path):
    trainer = dpo(policies, tmp_path, PAIRS, loss_type="sigmoid", beta=0.3)
    expected, batch = theirs(trainer)
    loss, metrics, rows = ours(policies, "dpo", {"beta": 0.3}, PAIRS)
    assert loss == pytest.approx(expected, abs=1e-5)
    logged = trainer._metrics["eval"]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert metrics[name] == pytest.approx(logged[name][0], abs=1e-5), name
    sequences = {
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }
    assert sequences == {(*row.prompt.tolist(), *c.tolist()) for row in rows for c in row.candidates}, "the same tokens"
    assert sum(c.size for row in rows for c in row.candidates) == int(batch["completion_mask"].sum())


def test_reverse_dpo(policies, tmp_path):
    swapped = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in PAIRS]
    expected, _ = theirs(dpo(policies, tmp_path, swapped, loss_type="sigmoid", beta=0.3))
    assert ours(policies, "dpo", {"beta": 0.3, "reverse": True}, PAIRS)[0] == pytest.approx(expected, abs=1e-5)


def test_conservative_dpo(policies, tmp_path):
    """TRL keeps the conservative form only in ``aot``, which on a batch of one pair is conservative DPO."""
    trainer = dpo(policies, tmp_path, PAIRS[1:2], loss_type="aot", beta=0.3, label_smoothing=0.2)
    loss, _, _ = ours(policies, "dpo", {"beta": 0.3, "label_smoothing": 0.2}, PAIRS[1:2])
    assert loss == pytest.approx(theirs(trainer)[0], abs=1e-5)


def test_dpo_with_an_sft_term(policies, tmp_path):
    settings = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "beta": 0.3}
    expected, _ = theirs(dpo(policies, tmp_path, PAIRS, **settings))
    assert ours(policies, "dpo", {"beta": 0.3, "sft_weight": 0.7}, PAIRS)[0] == pytest.approx(expected, abs=1e-5)


def test_hinge_norm(policies, tmp_path):
    expected, _ = theirs(dpo(policies, tmp_path, PAIRS, loss_type="hinge", beta=0.05))
    assert ours(policies, "rso", {"kind": "hinge_norm", "gamma": 0.05}, PAIRS)[0] == pytest.approx(expected, abs=1e-5)


def test_simpo(policies, tmp_path):
    settings = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}
    expected, _ = theirs(cpo(policies, tmp_path, **settings))
    assert ours(policies, "simpo", {}, PAIRS)[0] == pytest.approx(expected, abs=1e-5)


def test_hinge_without_reference_is_plad_rank(policies, tmp_path):
    """max(0, 1 − β·d) is RSO's hinge with γ = β, and β × plad_rank with margin 1/β."""
    settings = {"loss_type": "hinge", "beta": 0.05, "cpo_alpha": 0.0}
    expected, _ = theirs(cpo(policies, tmp_path, **settings))
    assert ours(policies, "rso", {"kind": "hinge", "gamma": 0.05}, PAIRS)[0] == pytest.approx(expected, abs=1e-5)
    assert 0.05 * ours(policies, "plad_rank", {"margin": 20.0}, PAIRS)[0] == pytest.approx(expected, abs=1e-5)
