"""Shared prompts change neither log-probs nor gradients: against plain forward passes, sequence by sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from plad_ray.objectives.base import Objective
from plad_ray.train import attention
from plad_ray.train.layout import CONCATENATED, Layout, Row, filler
from plad_ray.train.logprobs import ResponseValues
from plad_ray.train.masks import segment_masks
from plad_ray.train.shared import SHARED, pack

WINDOW = 6
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
GQA = {"num_key_value_heads": 1}
GEMMA = {**GQA, "head_dim": 16, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "llama": GQA,
    "qwen2": {**GQA, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {**GQA, "head_dim": 16},
    "phi3": {**GQA, "sliding_window": WINDOW},
    "gpt2": {"n_inner": 48},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt_neox": {},
    "mistral": {**GQA, "sliding_window": WINDOW},
    "gemma2": {**GEMMA, "attn_logit_softcapping": None},
    "gemma3_text": GEMMA,
}


def tiny(model_type: str, **config) -> nn.Module:
    torch.manual_seed(0)
    sizes = {**SIZES, **MODELS.get(model_type, {}), **config}
    sizes |= {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 128}
    if model_type == "gpt2":
        sizes = {"n_positions": 128} | {k: v for k, v in sizes.items() if k != "intermediate_size"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    for parameter in model.parameters():  # biases and norms start at values that hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def rows(shape: list[tuple[int, list[int]]], seed: int = 0) -> list[Row]:
    """Random rows from (prompt length, candidate lengths)."""
    draw = np.random.default_rng(seed)

    def tokens(count: int) -> np.ndarray:
        return draw.integers(0, 50, count).astype(np.int32)

    return [Row(tokens(p), tuple(map(tokens, lengths)), (0.0,) * len(lengths)) for p, lengths in shape]


#: One to eight candidates, ragged; prompts shorter and longer than the window; lengths that share sequences.
RAGGED = [(9, [4, 7]), (1, [3]), (12, [2, 5, 1, 8, 3, 3, 9, 1]), (3, [12, 1, 5]), (2, [1, 1])]


def plain(model: nn.Module, batch_rows: list[Row], pad_left: int = 0) -> list[torch.Tensor]:
    """Log-probs of each candidate from full logits of its own sequence, padded on the left by ``pad_left``."""
    found = []
    for row in batch_rows:
        for candidate in row.candidates:
            ids = np.concatenate([np.zeros(pad_left, np.int32), row.prompt, candidate])
            mask = torch.ones(1, len(ids), dtype=torch.long)
            mask[:, :pad_left] = 0
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
            ids_1L = torch.from_numpy(ids).long()[None]
            logits = model(input_ids=ids_1L, attention_mask=mask, position_ids=position_ids).logits[0].float()
            targets = torch.from_numpy(candidate).long()
            found.append(logits[pad_left + len(row.prompt) - 1 : -1].log_softmax(-1).gather(1, targets[:, None])[:, 0])
    return found


def by_candidate(values_BKT: torch.Tensor, batch_rows: list[Row]) -> list[torch.Tensor]:
    return [values_BKT[b, k, : len(c)] for b, row in enumerate(batch_rows) for k, c in enumerate(row.candidates)]


def weighted(values: list[torch.Tensor]) -> torch.Tensor:
    """A scalar in which every token has its own weight."""
    return (torch.cat(values) * torch.linspace(-1, 1, sum(map(len, values)))).sum()


def gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def assert_equal(
    model: nn.Module, batch_rows: list[Row], chunks: int = 1, pad_left: int = 0, layout: Layout = SHARED
) -> None:
    expected = plain(model, batch_rows, pad_left)
    values = ResponseValues(model, Objective())(layout.collate(batch_rows, 0, chunks))["logp"]
    got = by_candidate(values, batch_rows)
    torch.testing.assert_close(torch.cat(got), torch.cat(expected), rtol=1e-5, atol=1e-5)
    pairs = zip(gradients(model, weighted(got)), gradients(model, weighted(expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", MODELS)
def test_equals_plain_forward_passes(model_type):
    assert_equal(tiny(model_type), rows(RAGGED))


@pytest.fixture
def small_blocks(monkeypatch) -> list[int]:
    """Attention in blocks of few queries whatever the rows; how many blocks each call computed."""
    monkeypatch.setattr(attention, "QUERIES", 5)
    calls: list[int] = []
    compute = attention._InBlocks.apply
    monkeypatch.setattr(attention._InBlocks, "apply", lambda *args: calls.append(len(args[4])) or compute(*args))
    return calls


@pytest.mark.parametrize("model_type", MODELS)
def test_attention_in_blocks_equals_plain_forward_passes(model_type, small_blocks):
    model = tiny(model_type)
    assert_equal(model, rows(RAGGED))
    assert len(small_blocks) == 2 and min(small_blocks) > 5


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_attention_in_blocks_under_gradient_checkpointing(model_type, small_blocks):
    model = tiny(model_type)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_equal(model, rows(RAGGED))
    assert len(small_blocks) == 4, "once forward, once again for the backward pass"


def test_blocks_look_back_to_their_earliest_row_and_the_last_layer_asks_where_it_is_read():
    rows_of_two = [[(200, [30, 30])], [(100, [40]), (90, [20])]]
    segments = SHARED.collate([row for shape in rows_of_two for row in rows(shape)], 0, 1).segments
    assert segments.position_SL.shape == (2, 260)
    blocks = attention.blocks_of(segments, "llama")
    assert [(b.start, b.first, b.end) for b in blocks.every] == [(0, 0, 130), (0, 130, 260)]
    assert [(b.start, b.first, b.end) for b in blocks.last] == [(0, 99, 130), (0, 130, 260)]
    alone = attention.blocks_of(SHARED.collate(rows(rows_of_two[0]), 0, 1).segments, "llama")
    assert [(b.start, b.first, b.end) for b in alone.last] == [(0, 199, 260)]
    assert attention.blocks_of(segments, "somebody's") is None


@pytest.mark.parametrize("model_type", MODELS)
def test_equals_a_left_padded_forward_pass(model_type):
    assert_equal(tiny(model_type), rows(RAGGED[:2]), pad_left=5)


@pytest.mark.parametrize("model_type", MODELS)
def test_a_prompt_alone_in_its_sequence(model_type):
    """Neither packed nor padded."""
    model, alone = tiny(model_type), rows([(9, [4, 7])])
    batch = SHARED.collate(alone, 0, 1)
    assert batch.ids_SL.shape == (1, 20) and bool(batch.attention_SL.all())
    assert_equal(model, alone)


@pytest.mark.parametrize("model_type", MODELS)
def test_the_concatenated_layout_equals_plain_forward_passes(model_type):
    assert_equal(tiny(model_type), rows(RAGGED[:3]), layout=CONCATENATED)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("candidates", range(1, 9))
def test_any_number_of_candidates(candidates, model_type):
    assert_equal(tiny(model_type), rows([(7, list(range(1, candidates + 1)))]))


@pytest.mark.parametrize("chunks", [2, 100])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_frozen_heads_in_chunks(model_type, chunks):
    """The path of LoRA: slopes taken in the forward pass."""
    model = tiny(model_type, tie_word_embeddings=False)
    model.get_output_embeddings().requires_grad_(False)
    assert_equal(model, rows(RAGGED[:3]), chunks)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_gradient_checkpointing(model_type):
    model = tiny(model_type)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    dropout = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    model.train()
    for module in dropout:
        module.p = 0.0
    assert model.is_gradient_checkpointing
    assert_equal(model, rows(RAGGED[:3]))


def test_both_layouts_make_the_same_batch_but_for_its_sequences():
    batch_rows = [*rows(RAGGED), filler(rows(RAGGED)[0])]
    shared, plain_batch = (layout.collate(batch_rows, 0, 1) for layout in (SHARED, CONCATENATED))
    for name in ("target_N", "place_N", "mask_BKT", "scores_BK", "tokens"):
        torch.testing.assert_close(getattr(shared, name), getattr(plain_batch, name))
    assert shared.ids_SL.numel() < 0.6 * plain_batch.ids_SL.numel()


def test_mask_by_hand():
    """Prompt of 2, candidates of 2 and 1, then one token of padding; window 2."""
    batch = SHARED.collate([Row(np.array([7, 8]), (np.array([1, 2]), np.array([3])), (0.0, 0.0))], 0, 1)
    assert batch.segments is not None
    assert batch.ids_SL.tolist() == [[7, 8, 1, 2, 3]]
    assert batch.segments.position_SL.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.source_N.tolist() == [1, 2, 1], "both candidates' first tokens are predicted at the prompt's end"
    config = AutoConfig.for_model("mistral", sliding_window=None)
    full = segment_masks(batch.segments, config)[0, 0].int().tolist()
    assert full == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    config.sliding_window = 2
    narrow = segment_masks(batch.segments, config)[0, 0].int().tolist()
    assert narrow == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]


def test_rows_that_share_a_sequence_do_not_see_each_other():
    """Other neighbours, same values."""
    model, batch_rows = tiny("llama"), rows(RAGGED)
    module = ResponseValues(model, Objective())
    with torch.no_grad():
        together = module(SHARED.collate(batch_rows, 0, 1))["logp"]
        assert len(SHARED.collate(batch_rows, 0, 1).ids_SL) < len(batch_rows)
        alone = module(SHARED.collate(batch_rows[3:4], 0, 1))["logp"]
    torch.testing.assert_close(together[3, :3, :12], alone[0], rtol=1e-5, atol=1e-5)


def test_packing_keeps_every_item_once():
    lengths = [5, 9, 2, 7, 7, 1]
    sequences = pack(lengths)
    assert sorted(item for members in sequences for item in members) == list(range(6))


@pytest.mark.parametrize(("prompts", "spread"), [(350, 60), (350, 150), (120, 80)])
@pytest.mark.parametrize("micro_batch", [4, 16, 64])
def test_little_is_padded(prompts, spread, micro_batch):
    """Steps of 64 prompts, lengths spread as in TL;DR and wider, dealt out as the loop does."""
    from plad_ray.train.sampler import deal

    draw = np.random.default_rng(0)
    lengths = np.clip(draw.normal(prompts, spread, 64), 16, 512) + draw.integers(8, 60, (2, 64)).sum(0)
    real = padded = 0
    for (share,) in deal(list(range(64)), lengths, 1, micro_batch):
        sizes = [int(lengths[i]) for i in share]
        sequences = pack(sizes)
        longest = max(sum(sizes[item] for item in members) for members in sequences)
        real, padded = real + sum(sizes), padded + longest * len(sequences)
    assert 1 - real / padded < 0.05
