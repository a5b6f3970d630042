"""Values of response tokens: by hand, against a plain forward pass, and on architectures that scale their logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from plad_ray.objectives import build
from plad_ray.objectives.base import sequence_logps
from plad_ray.train import logprobs
from plad_ray.train.forward import head_gives_logits
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


def tiny(model_type: str) -> nn.Module:
    torch.manual_seed(0)
    layers = {"n_layer": 2} if model_type == "gpt2" else {"num_hidden_layers": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, vocab_size=50, **SMALL[model_type], **layers, **ids)
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
    assert values.head_alone == (model_type not in NOT_ALONE)
    batch = concatenate(ROWS, pad=2)
    with torch.no_grad():
        torch.testing.assert_close(values(batch)["logp"], plain_values(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_chunks_change_neither_values_nor_gradient(model_type):
    results = []
    for chunks in (1, 4, 40):  # 40: more chunks than positions, as a small worker beside a large one has
        model = tiny(model_type)
        values_BKT = ResponseValues(model, build("plad_rank", {}))(concatenate(ROWS, pad=2, chunks=chunks))["logp"]
        values_BKT.square().sum().backward()
        results.append((values_BKT.detach(), model.get_input_embeddings().weight.grad))
    for values_BKT, gradient in results[1:]:
        torch.testing.assert_close(values_BKT, results[0][0])
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-4, atol=1e-5)


def test_the_head_sees_response_positions_only():
    model = tiny("llama")
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    values = ResponseValues(model, build("plad_rank", {}))
    seen.clear()
    values(concatenate(ROWS, pad=2))
    assert seen == [(15, 50)]


def test_a_model_without_a_head_takes_the_full_path():
    model = tiny("llama")
    assert head_gives_logits(model)
    model.get_output_embeddings = lambda: None
    assert not head_gives_logits(model)


def test_chunk_count_bounds_the_logits():
    assert chunk_count(10, 100) == 1
    assert chunk_count(0, 32000) == 1
    assert chunk_count(10_000, 32_000) == 20  # 20 × 500 × 32,000 fp32 logits: 64 MB at once


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
