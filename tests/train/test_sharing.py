"""Which models share prompts: the table, the probe, and what is said."""

from __future__ import annotations

import pytest
import torch
from test_shared import MODELS, assert_equal, rows, tiny
from torch import nn

from plad_ray.config import Runtime
from plad_ray.errors import PladError
from plad_ray.train import masks, sharing
from plad_ray.train.layout import CONCATENATED
from plad_ray.train.shared import SHARED
from plad_ray.train.sharing import choose_layout, obstacle_to_sharing


def test_every_proven_type_is_proven():
    assert set(sharing.PROVEN) == set(MODELS)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_a_proven_type_shares_without_a_probe(model_type, monkeypatch):
    monkeypatch.setattr(sharing, "_distance", None)
    assert choose_layout("auto", tiny(model_type)) == (SHARED, None)
    assert choose_layout("concatenated", tiny(model_type)) == (CONCATENATED, None)


@pytest.mark.parametrize(("model_type", "config"), [("phi", {}), ("starcoder2", {"sliding_window": 100})])
def test_an_unknown_type_that_passes_the_probe_shares(model_type, config):
    model = tiny(model_type, **config)
    assert obstacle_to_sharing(model) is None
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    obstacle_to_sharing(model)
    assert torch.equal(torch.random.get_rng_state(), state), "a probe takes nothing from the run's random numbers"


def test_gpt_neo_is_concatenated():
    model = tiny("gpt_neo", num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=100)
    layout, note = choose_layout("auto", model)
    assert layout == CONCATENATED
    assert note == (
        "prompts are not shared by their candidates: the student is a gpt_neo model: its local attention counts "
        "indices, not positions"
    )
    with pytest.raises(
        PladError, match=r"runtime\.train\.layout shared would be inexact .*gpt_neo.*; use auto or conc"
    ):
        choose_layout("shared", model)


def test_the_probe_is_longer_than_a_window_of_any_length(monkeypatch):
    """Masks that forget the window: right on rows shorter than it, so that only a probe with a short one tells."""
    monkeypatch.setattr(sharing, "PROVEN", ())
    sees = masks._sees
    monkeypatch.setattr(masks, "_sees", lambda segments, window: sees(segments, None))
    assert obstacle_to_sharing(tiny("mistral", sliding_window=None)) is None
    reason = str(obstacle_to_sharing(tiny("mistral", sliding_window=4096)))
    assert reason.startswith("it is not among the proven types, and log-probs of a tiny model differ by")


def test_a_type_that_knows_no_position_ids_says_why():
    """ALiBi biases come from the padding mask."""
    assert "not among the proven types" in str(obstacle_to_sharing(tiny("falcon", alibi=True)))


def test_a_key_that_the_architecture_does_not_read_is_no_window():
    model = tiny("llama")
    model.config.sliding_window = 4
    assert_equal(model, rows([(9, [4, 7])]))


def test_layers_of_another_kind_and_other_attention():
    model = tiny("llama")
    model.config._attn_implementation = "eager"
    assert obstacle_to_sharing(model) == "its attention is eager, and only sdpa takes any mask"
    gemma = tiny("gemma3_text")
    gemma.config.layer_types = ["chunked_attention", "full_attention"]
    assert obstacle_to_sharing(gemma) == "it has layers of kind chunked_attention"


def test_a_frozen_model_that_cannot_share_decides_for_all():
    frozen: dict[str, nn.Module] = {
        "teacher": tiny("gpt_neo", num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]])
    }
    layout, note = choose_layout("auto", tiny("llama"), frozen)
    assert layout == CONCATENATED and note is not None and "teacher is a gpt_neo model" in note


def test_layout_is_a_runtime_setting():
    assert Runtime().train.layout == "auto"
