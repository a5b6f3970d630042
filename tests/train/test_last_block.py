"""The last feed-forward block runs at the positions that are read, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from plad_ray.objectives.base import Objective
from plad_ray.train.last_block import POSITION_WISE
from plad_ray.train.layout import CONCATENATED
from plad_ray.train.logprobs import ResponseValues
from plad_ray.train.shared import SHARED
from tests.train.test_shared import MODELS, RAGGED, rows, tiny


def widths_seen(model: torch.nn.Module) -> list[list[int]]:
    """How many positions each layer's block computes, call by call."""
    seen: list[list[int]] = []
    for layer in model.get_decoder().layers:
        calls: list[int] = []
        layer.mlp.gate_proj.register_forward_pre_hook(
            lambda _, args, calls=calls: calls.append(args[0].shape[:-1].numel())
        )
        seen.append(calls)
    return seen


@pytest.mark.parametrize("layout", [SHARED, CONCATENATED], ids=lambda layout: layout.name)
@pytest.mark.parametrize("model_type", POSITION_WISE)
def test_values_and_gradients_are_those_of_the_whole_block(model_type, layout, monkeypatch):
    batch = layout.collate(rows(RAGGED), 0, 1)
    model = tiny(model_type)
    whole = tiny(model_type)
    monkeypatch.setattr(type(whole), "is_gradient_checkpointing", property(lambda self: self is whole))
    values = [ResponseValues(m, Objective())(batch)["logp"] for m in (model, whole)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-5)
    slopes = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(0))
    for value in values:
        (value * slopes * batch.mask_BKT).sum().backward()
    for trimmed, full in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(trimmed.grad, full.grad, rtol=1e-4, atol=1e-4)


def test_only_the_last_block_is_cut_and_siblings_share_their_first_position():
    model = tiny("llama")
    batch = SHARED.collate(rows([(9, [4, 7, 1])]), 0, 1)
    values = ResponseValues(model, Objective())
    seen = widths_seen(model)
    values(batch)
    assert seen == [[9 + 4 + 7 + 1], [1 + 3 + 6]]  # three candidates' first tokens are predicted at one position
    last = model.get_decoder().layers[-1]
    assert not any("forward" in vars(module) for module in (last.mlp, last.self_attn.q_proj, last.self_attn.o_proj))


def test_checkpointed_layers_stay_whole():
    model = tiny("llama")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = SHARED.collate(rows([(9, [4, 7])]), 0, 1)
    values = ResponseValues(model, Objective()).train()
    seen = widths_seen(model)
    values(batch)["logp"].sum().backward()
    assert seen == [[20, 20], [20, 20]]  # once forward, once again for the backward pass


def test_types_without_such_a_block_are_left_alone():
    assert set(POSITION_WISE) == set(MODELS) - {"opt"}
