"""Encoder-decoders: values and gradients equal a plain forward sequence by sequence; the loop and frozen models work."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from seq2seq_objectives import Distance
from train_jobs import WORDS, column, distill_job, session, sft_job
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from plad_ray.artifacts import Store
from plad_ray.config import Model
from plad_ray.merge.base import merge_adapter
from plad_ray.models.load import load_model, load_tokenizer
from plad_ray.models.policy import resolve
from plad_ray.objectives import build
from plad_ray.train.adapter import save_model
from plad_ray.train.frozen import FrozenModels
from plad_ray.train.layout import Row, filler
from plad_ray.train.logprobs import ResponseValues
from plad_ray.train.seq2seq import seq2seq_layout
from plad_ray.train.worker import work
from plad_ray.train.world import World
from tests.conftest import save_tiny_model

OBJECTIVES = "tests.train.seq2seq_objectives"
IDS = {"decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 50}
T5_SIZES = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2} | IDS
MODELS = {
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5_SIZES)),
    "t5 v1.1": lambda: T5ForConditionalGeneration(
        T5Config(**T5_SIZES, tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            forced_eos_token_id=None,
            **(IDS | {"decoder_start_token_id": 2, "pad_token_id": 1}),
        )
    ),
}


def model_of(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def row(prompt: list[int], *candidates: list[int]) -> Row:
    arrays = tuple(np.array(c, np.int32) for c in candidates)
    return Row(np.array(prompt, np.int32), arrays, (0.0,) * len(arrays))


#: EOS (2) and pad (0) inside prompts and responses, candidates in unequal numbers, one of them empty.
ROWS = [
    row([3, 4, 0, 5, 2], [6, 7, 2], [8, 2]),
    row([9, 2], [10, 0, 12, 13, 2], [14], [15, 2, 16]),
    row([3, 4, 5, 6, 7, 8, 2], [2], []),
]


def batch_of(model, rows=ROWS, pad: int = 2, chunks: int = 1):
    return seq2seq_layout(model.config).collate(rows, pad, chunks)


def plain_values(model: torch.nn.Module) -> torch.Tensor:
    """Sequence by sequence, from the model's own forward, without padding."""
    found = torch.zeros(3, 3, 5)
    start = model.config.decoder_start_token_id
    for b, r in enumerate(ROWS):
        for k, candidate in enumerate(r.candidates):
            if not len(candidate):
                continue
            decoder = torch.tensor([[start, *candidate.tolist()[:-1]]])
            logits = model(input_ids=torch.tensor([r.prompt.tolist()]), decoder_input_ids=decoder).logits[0]
            ids = torch.from_numpy(candidate).long()
            found[b, k, : len(candidate)] = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    return found


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_equal_a_plain_forward(name, chunks):
    """The fill id is EOS, and pad occurs in the text: masks come from lengths."""
    weight = torch.rand(3, 3, 5)
    gradients, values = [], []
    for plain in (True, False):
        model = model_of(name)
        if plain:
            found = plain_values(model)
        else:
            module = ResponseValues(model, build("plad_rank", {}))
            assert module.head.alone, "logits are computed where a response token is predicted, nowhere else"
            found = module(batch_of(model, chunks=chunks))["logp"]
        (found * weight).sum().backward()
        values.append(found.detach())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, rtol=1e-5, atol=1e-5, msg=parameter)


def test_loss_equals_transformers_own_from_labels():
    """SFT: cross-entropy of labels, whose shift to the right puts the start token in front."""
    model = model_of("t5")
    rows = [row(r.prompt.tolist(), r.candidates[0].tolist()) for r in ROWS]
    batch = batch_of(model, rows)
    objective = build("sft", {})
    terms = objective.loss(ResponseValues(model, objective)(batch), batch.mask_BKT, batch.scores_BK)
    labels = torch.full((3, 5), -100)
    for b, r in enumerate(rows):
        labels[b, : len(r.candidates[0])] = torch.from_numpy(r.candidates[0])
    theirs = model(
        input_ids=batch.encoder_ids_BP, attention_mask=batch.encoder_attention_BP, labels=labels.clone()
    ).loss
    ours = terms.sums["nll"] / objective.counts(batch.mask_BKT)["nll"]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_batch_by_hand():
    batch = batch_of(model_of("bart"), pad=7)
    assert batch.encoder_ids_BP[1].tolist() == [9, 2, 7, 7, 7, 7, 7]
    assert batch.encoder_attention_BP.sum(-1).tolist() == [5, 2, 7]
    assert batch.owner_S.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert batch.ids_SL[0].tolist() == [2, 6, 7, 2, 7, 7], "the start token, then the response"
    assert batch.attention_SL.sum(-1).tolist() == [4, 3, 6, 2, 4, 2, 1]
    assert batch.source_N.tolist()[:5] == [0, 1, 2, 6, 7], "the first is predicted from the start token"
    assert batch.target_N.tolist() == [6, 7, 2, 8, 2, 10, 0, 12, 13, 2, 14, 15, 2, 16, 2]
    assert batch.mask_BKT.sum(-1).tolist() == [[3, 2, 0], [5, 1, 3], [1, 0, 0]]
    assert batch.tokens == (5 + 3) + (5 + 2) + (2 + 5) + (2 + 1) + (2 + 3) + (7 + 1) + 7
    empty = batch_of(model_of("bart"), [filler(ROWS[1])])
    assert not empty.mask_BKT.any() and empty.tokens == 0


def test_a_prompt_is_encoded_once_and_the_head_sees_response_positions_only():
    model = model_of("t5")
    module, seen = ResponseValues(model, build("plad_rank", {})), []
    model.get_encoder().register_forward_hook(lambda m, args, out: seen.append(tuple(out[0].shape)))
    model.get_output_embeddings().register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    module(batch_of(model))
    assert seen == [(3, 7, 32), (15, 50)]


def test_a_family_that_does_more_behind_its_head_takes_the_full_path():
    model = model_of("t5")
    forward = model.forward

    def capped(**kwargs):
        out = forward(**kwargs)
        out.logits = 2.0 * torch.tanh(out.logits / 2.0)
        return out

    model.forward = capped
    module = ResponseValues(model, build("plad_rank", {}))
    assert not module.head.alone
    torch.testing.assert_close(module(batch_of(model))["logp"], plain_values(model), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_t5, gloo):
    """The curve with each step in one micro-batch, and the job that made it."""
    job = distill_job(Store(str(tmp_path_factory.mktemp("loop"))), tiny_t5, train={"micro_batch": 8})
    return session(job), job


@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize(("micro_batch", "stage"), [(1, 2), (3, 0), (8, 3)])
def test_neither_micro_batches_nor_zero_change_the_run(micro_batch, stage, whole, store, tiny_t5):
    got = session(distill_job(store, tiny_t5, train={"micro_batch": micro_batch, "zero_stage": stage}))
    for name in ("loss", "grad_norm", "rewards/chosen", "rewards/accuracies", "num_tokens"):
        torch.testing.assert_close(column(got, name), column(whole[0], name), rtol=1e-5, atol=1e-5)


def test_the_adapter_is_plain_peft_on_q_and_v(whole, tiny_t5):
    """PEFT loads the folder by itself as an adapter of a sequence-to-sequence model, and it acts."""
    folder = whole[1].out.local_folder()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM" and set(config["target_modules"]) == {"q", "v"}
    base = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
    read = {"input_ids": torch.tensor([[3, 4, 2]]), "decoder_input_ids": torch.tensor([[0, 5, 6]])}
    with torch.no_grad():
        before = base(**read).logits
        theirs = PeftModel.from_pretrained(base, folder).eval()(**read).logits
        policy = resolve(Model(path=str(tiny_t5)), whole[1].out)
        torch.testing.assert_close(load_model(policy)(**read).logits, theirs, rtol=0, atol=0)
        merged = merge_adapter(policy, folder.parent / "merged")
        of_merged = AutoModelForSeq2SeqLM.from_pretrained(merged).eval()(**read).logits
    assert (theirs - before).abs().max() > 1e-3
    torch.testing.assert_close(of_merged, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("gloo")
def test_a_t5_from_scratch_learns_its_references_and_is_saved_whole(store):
    config = {"d_model": 64, "d_kv": 32, "d_ff": 96, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    scratch = {"model_type": "t5", "tokenizer": "words", "config": config}
    job = sft_job(
        store, {"scratch": scratch}, method="full", batch_size=24, epochs=100, learning_rate=5e-3, warmup_ratio=0.1
    )
    lines = session(job)
    assert lines[-1]["loss"] < 0.1 < lines[0]["loss"]
    policy = resolve(Model.model_validate(job.config["model"]), job.out)
    model, tokenizer = load_model(policy), load_tokenizer(policy)
    ids = tokenizer(f"{WORDS[7]} {WORDS[8]} {WORDS[9]}", return_tensors="pt").input_ids  # p1: its reference is "w9 w7"
    out = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0].tolist()
    expected = tokenizer(f"{WORDS[9]} {WORDS[7]}").input_ids
    assert out == [model.config.decoder_start_token_id, *expected, tokenizer.eos_token_id]


def test_weights_that_the_config_ties_and_the_checkpoint_does_not_are_saved_apart(tmp_path):
    """T5 v1.1: the config says tied, the released weights are not."""
    folder = save_tiny_model(tmp_path / "base", "t5", tie_word_embeddings=False)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(folder)
    trained = AutoModelForSeq2SeqLM.from_pretrained(folder)
    weights = {name: p.detach().clone() + 0.5 for name, p in trained.named_parameters()}
    save_model(trained, weights, tmp_path / "saved", AutoTokenizer.from_pretrained(folder), [2], torch.float32)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    assert dict(again.named_parameters()).keys() == weights.keys() and "lm_head.weight" in weights
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert again.config.scale_decoder_outputs is False


def test_a_frozen_teachers_logits_and_a_frozen_references_log_probs(tiny_t5):
    teacher, student = model_of("t5"), model_of("t5 v1.1")
    module = ResponseValues(student, Distance(), FrozenModels(own={"teacher": teacher.requires_grad_(False)}))
    batch = batch_of(student)
    values = module(batch)
    gap = plain_values(teacher) - plain_values(student)
    torch.testing.assert_close(values["gap"], gap * batch.mask_BKT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.frozen_logps("teacher", batch), plain_values(teacher), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("gloo")
def test_frozen_models_and_fresh_samples_in_the_loop(store, tiny_t5, tmp_path):
    """At step 1 the student is its reference, and what it sampled has the log-prob it was sampled with; later steps of
    one window train on samples of older weights."""
    frozen = {"path": str(tiny_t5), "max_length": 64}
    against = distill_job(store, tiny_t5, "against", objective={"name": f"{OBJECTIVES}:Against"}, epochs=4)
    against.config["frozen"] = {"reference": frozen}
    lines = session(against)
    assert lines[0]["loss"] == pytest.approx(1.0, abs=1e-5) and lines[-1]["loss"] < 0.9
    fresh = distill_job(store, tiny_t5, "fresh", objective={"name": f"{OBJECTIVES}:Fresh"})
    fresh.config["max_new_tokens"] = 6
    moved = column(session(fresh), "moved")
    assert (moved < 1e-5).all(), "every step samples anew"


@pytest.mark.usefixtures("gloo")
def test_a_causal_teachers_logits_are_refused(store, tiny_t5, tiny_llama):
    """The two tiny models share their vocabulary: what differs is where they read the prompt."""
    job = distill_job(store, tiny_t5, objective={"name": f"{OBJECTIVES}:Distance"})
    job.config["frozen"] = {"teacher": {"path": str(tiny_llama), "max_length": 64}}
    result = work(job, World(0, 1, torch.device("cpu"), None, lambda metrics, folder: None))
    assert result["error"].startswith("of teacher and student only one is an encoder-decoder")
    assert "seqkd, plad_rank" in result["error"]
