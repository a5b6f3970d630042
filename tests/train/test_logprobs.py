"""Values of response tokens: by hand, against a plain forward pass, and on architectures that scale their logits."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from plad_ray.errors import PladError
from plad_ray.objectives import Objective, build
from plad_ray.objectives.base import sequence_logps, token_logps
from plad_ray.train import logprobs
from plad_ray.train.forward import Head
from plad_ray.train.frozen import FrozenModels
from plad_ray.train.layout import Batch, Row, concatenate, filler
from plad_ray.train.logprobs import ResponseValues, chunk_count


def row(prompt: list[int], *candidates: list[int]) -> Row:
    arrays = tuple(np.array(c, np.int32) for c in candidates)
    return Row(np.array(prompt, np.int32), arrays, (0.0,) * len(arrays))


class Table(nn.Module):
    """Stands for a causal model whose logits depend on the current token alone: row i of a table."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.table = nn.Parameter(table)

    def values(self, batch: Batch) -> torch.Tensor:
        logits_NV = self.table[batch.ids_SL.flatten()[batch.source_N]]
        return logprobs.scatter(build("plad_rank", {}).per_token(logits_NV, {}, batch.target_N)["logp"], batch)


def test_three_tokens_by_hand():
    """Vocabulary of 3 (2 is EOS). Prompt [0]; response [1, 0, EOS]: tokens 1, 0, 2 are predicted from 0, 1, 0."""
    table = Table(torch.tensor([[0.0, math.log(2), math.log(3)], [math.log(4), 0.0, 0.0], [9.0, 9.0, 9.0]]))
    batch = concatenate([row([0], [1, 0, 2])], pad=2)
    values_BKT = table.values(batch)
    by_hand = [math.log(2 / 6), math.log(4 / 6), math.log(3 / 6)]
    torch.testing.assert_close(values_BKT[0, 0], torch.tensor(by_hand))
    total = sequence_logps(values_BKT, batch.mask_BKT, "sum")
    assert total.item() == pytest.approx(math.log(1 / 9))
    assert sequence_logps(values_BKT, batch.mask_BKT, "mean").item() == pytest.approx(math.log(1 / 9) / 3)


def test_masks_come_from_lengths_when_pad_is_eos():
    """EOS inside a response counts, equal ids in the padding do not."""
    batch = concatenate([row([5, 2], [2], [7, 2, 2, 2]), row([5], [7, 2], [])], pad=2)
    assert batch.mask_BKT.tolist() == [
        [[True, False, False, False], [True, True, True, True]],
        [[True, True, False, False], [False] * 4],
    ]
    assert batch.attention_SL.sum(-1).tolist() == [3, 6, 3, 1]
    assert batch.target_N.tolist() == [2, 7, 2, 2, 2, 7, 2]
    assert batch.tokens == 3 + 6 + 3 + 1


def test_a_filler_row_has_an_empty_mask_and_no_tokens():
    batch = concatenate([filler(row([1], [2], [3]))], pad=0)
    assert not batch.mask_BKT.any() and batch.tokens == 0
    counts = build("plad_rank", {"sft_weight": 1.0}).counts(batch.mask_BKT)
    assert [float(c) for c in counts.values()] == [0.0, 0.0]


SMALL = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gpt2": {"n_embd": 32, "n_head": 2, "n_positions": 64},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2},
    "qwen2": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1},
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 2, "word_embed_proj_dim": 16},
    "phi": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2},  # LM head with a bias
    "gemma2": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "cohere": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1},
}
#: These scale or cap their logits after the LM head.
NOT_ALONE = ("gemma2", "cohere")


def tiny(model_type: str, **config) -> nn.Module:
    torch.manual_seed(0)
    layers = {"n_layer": 2} if model_type == "gpt2" else {"num_hidden_layers": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **{"vocab_size": 50, **SMALL[model_type], **layers, **ids, **config})
    return AutoModelForCausalLM.from_config(config).eval()


ROWS = [row([3, 4, 5], [6, 7, 2], [8, 2]), row([9], [10, 11, 12, 13, 2], [14]), row([3, 4, 5, 6, 7, 8], [2], [9, 9, 2])]


def plain_values(model: nn.Module) -> torch.Tensor:
    """The same numbers sequence by sequence, from full logits and without padding."""
    values_BKT = torch.zeros(3, 2, 5)
    for b, r in enumerate(ROWS):
        for k, candidate in enumerate(r.candidates):
            ids = torch.from_numpy(np.concatenate([r.prompt, candidate])).long()[None]
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
            for t, token in enumerate(candidate):
                values_BKT[b, k, t] = logps[len(r.prompt) - 1 + t, int(token)]
    return values_BKT


@pytest.mark.parametrize("model_type", SMALL)
def test_values_equal_a_plain_forward_pass(model_type):
    model = tiny(model_type)
    values = ResponseValues(model, build("plad_rank", {}))
    assert values.head.alone == (model_type not in NOT_ALONE)
    batch = concatenate(ROWS, pad=2)
    with torch.no_grad():
        torch.testing.assert_close(values(batch)["logp"], plain_values(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head_trained", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_chunks_change_neither_values_nor_gradient(model_type, head_trained):
    """40: more chunks than positions, as a small worker beside a large one has. Gemma-2 soft-caps its logits."""
    results = []
    for chunks in (1, 4, 40):
        model = tiny(model_type, tie_word_embeddings=False)
        model.get_output_embeddings().requires_grad_(head_trained)
        values_BKT = ResponseValues(model, build("plad_rank", {}))(concatenate(ROWS, pad=2, chunks=chunks))["logp"]
        values_BKT.square().sum().backward()
        results.append((values_BKT.detach(), model.get_input_embeddings().weight.grad))
    plain = tiny(model_type, tie_word_embeddings=False)
    plain_values(plain).square().sum().backward()
    results.append((plain_values(plain).detach(), plain.get_input_embeddings().weight.grad))
    for values_BKT, gradient in results[1:]:
        torch.testing.assert_close(values_BKT, results[0][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-4, atol=1e-5)


class Several(Objective):
    """Two values with a gradient and one without, against a frozen model's logits."""

    @property
    def logits_of(self):
        return ("teacher",)

    def per_token(self, logits_NV, frozen_NV, ids_N):
        gap_N = (logits_NV - frozen_NV["teacher"]).square().mean(-1)
        return {
            "gap": gap_N,
            "top": logits_NV.argmax(-1).float(),
            "logp": super().per_token(logits_NV, {}, ids_N)["logp"],
        }


def test_several_values_a_token_with_a_frozen_model():
    gradients, values = [], []
    for head_trained, chunks in [(True, 1), (False, 1), (False, 3)]:
        model, teacher = tiny("llama"), tiny("qwen2")
        model.get_output_embeddings().requires_grad_(head_trained)
        module = ResponseValues(model, Several(), FrozenModels(own={"teacher": teacher.requires_grad_(False)}))
        values.append(module(concatenate(ROWS, pad=2, chunks=chunks)))
        (values[-1]["gap"].sum() + 2 * values[-1]["logp"].square().sum()).backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    for found, gradient in zip(values[1:], gradients[1:], strict=True):
        for name in ("gap", "top", "logp"):
            torch.testing.assert_close(found[name], values[0][name])
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-5)


def test_no_logits_outlive_their_chunk():
    """What a forward pass keeps for its backward pass does not grow with the vocabulary."""
    kept = []
    for vocabulary in (50, 5000):
        model = tiny("llama", vocab_size=vocabulary)
        model.requires_grad_(False)
        for weight in model.model.layers.parameters():
            weight.requires_grad_(True)
        saved = []

        def pack(tensor, saved=saved):
            saved.append(weakref.ref(tensor))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            values = ResponseValues(model, build("plad_rank", {}))(concatenate(ROWS, pad=2))
        alive = [tensor for tensor in (reference() for reference in saved) if tensor is not None]
        assert alive and values["logp"].requires_grad
        kept.append(max(tensor.numel() for tensor in alive if tensor.shape[-1] != 32))
        del alive
    assert kept[0] == kept[1]


def test_the_head_sees_response_positions_only():
    model = tiny("llama")
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    values = ResponseValues(model, build("plad_rank", {}))
    seen.clear()
    values(concatenate(ROWS, pad=2))
    assert seen == [(15, 50)]


def test_a_model_without_a_known_head_is_called_whole():
    model = tiny("llama")
    assert Head(model).alone
    model.get_output_embeddings = lambda: None
    head = Head(model)
    assert not head.alone and head.trained
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(head(hidden), model.lm_head(hidden))


def test_logits_that_do_not_follow_from_the_decoder_are_refused():
    model = tiny("llama")
    whole = model.forward

    def forward(**inputs):
        out = whole(**inputs)
        out.logits = out.logits + model.model.embed_tokens.weight.sum() * model.calls
        model.calls += 1
        return out

    model.calls, model.forward = 1, forward
    with pytest.raises(PladError, match="LlamaForCausalLM has no logits that follow"):
        Head(model)


def test_chunk_count_bounds_the_logits():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert chunk_count(10, 100, cpu) == 1
    assert chunk_count(0, 32000, cpu) == 1
    assert chunk_count(10_000, 32_000, cpu) == 39  # of 257 × 32,000 fp32 logits: 32 MiB at once
    assert chunk_count(10_000, 32_000, gpu) == 10


def test_sft_loss_equals_transformers_own():
    model = tiny("llama")
    objective = build("sft", {})
    rows = [row(list(r.prompt), list(r.candidates[0])) for r in ROWS]
    batch = concatenate(rows, pad=2)
    terms = objective.loss(ResponseValues(model, objective)(batch), batch.mask_BKT, batch.scores_BK)
    ours = terms.sums["nll"] / objective.counts(batch.mask_BKT)["nll"]
    labels = batch.ids_SL.clone()
    labels[batch.attention_SL == 0] = -100
    for s, r in enumerate(rows):
        labels[s, : len(r.prompt)] = -100
    theirs = model(input_ids=batch.ids_SL, attention_mask=batch.attention_SL, labels=labels).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_a_log_prob_is_one_hot_minus_softmax(dtype):
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, -1.0, 0.5]], dtype=dtype, requires_grad=True)
    logps = token_logps(logits, torch.tensor([2, 0]))
    assert logps.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logps, logits, torch.tensor([1.0, -2.0]))
    p = logits.detach().double().softmax(-1)
    expected = torch.stack([torch.tensor([0.0, 0.0, 1.0]) - p[0], -2 * (torch.tensor([1.0, 0.0, 0.0]) - p[1])])
    torch.testing.assert_close(
        gradient.double(), expected.double(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6
    )
