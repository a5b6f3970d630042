"""FlexAttention sees what dense masks see. Its compiled kernels want a GPU (benchmarks/gpu.py); the masks do not."""

from __future__ import annotations

import pytest
import torch
from test_shared import RAGGED, rows, tiny
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AutoConfig

from plad_ray.objectives.base import Objective
from plad_ray.train import flex
from plad_ray.train.logprobs import ResponseValues
from plad_ray.train.masks import decoder_inputs
from plad_ray.train.shared import SHARED


@pytest.mark.parametrize("model_type", flex.TYPES)
@torch.no_grad()
def test_same_log_probs_as_with_dense_masks(model_type, monkeypatch):
    module = ResponseValues(tiny(model_type), Objective())
    batch = SHARED.collate(rows(RAGGED), 0, 1)
    dense = module(batch)["logp"]
    monkeypatch.setattr(flex, "pays", lambda config, length, device: True)
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    masks = decoder_inputs(batch, module.model.config)["attention_mask"]
    assert all(isinstance(mask, BlockMask) for mask in (masks.values() if isinstance(masks, dict) else [masks]))
    torch.testing.assert_close(module(batch)["logp"], dense, rtol=1e-5, atol=1e-5)


def test_who_takes_it():
    gpu, cpu, llama = torch.device("cuda"), torch.device("cpu"), AutoConfig.for_model("llama")
    assert flex.pays(llama, flex.SHORTEST, gpu)
    assert not flex.pays(llama, flex.SHORTEST - 1, gpu) and not flex.pays(llama, flex.SHORTEST, cpu)
    assert not flex.pays(AutoConfig.for_model("llama", attention_dropout=0.1), flex.SHORTEST, gpu)
    assert not flex.pays(AutoConfig.for_model("falcon"), flex.SHORTEST, gpu), "never compared"
