"""``runtime.train.fused_kernels``: who gets Liger's kernels, and that they are gone afterwards. They run on GPUs only."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from test_shared import tiny
from transformers.models.llama import modeling_llama

from plad_ray.config import TrainRuntime
from plad_ray.errors import PladError
from plad_ray.train import kernels


def test_they_are_there_within_and_not_after():
    own = dict(vars(modeling_llama))
    model = tiny("llama")
    with kernels.fused([model]):
        layer = model.model.layers[0]
        for module in (model.model.norm, layer.input_layernorm, layer.mlp):
            assert module.forward.__func__.__module__.startswith("liger_kernel")
        assert modeling_llama.apply_rotary_pos_emb.__module__.startswith("liger_kernel")
        assert type(model).forward is own["LlamaForCausalLM"].forward and "forward" not in vars(model), (
            "losses are ours"
        )
    assert dict(vars(modeling_llama)) == own


def test_a_model_that_liger_does_not_know():
    with (
        pytest.raises(PladError, match=r"fused_kernels: Liger has none for gpt2 models; leave it off"),
        kernels.fused([tiny("gpt2")]),
    ):
        pass


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: False)
    with (
        pytest.raises(PladError, match=r"needs the package liger-kernel .*; the extra gpu has it"),
        kernels.fused([tiny("llama")]),
    ):
        pass


def test_not_on_cpus():
    with pytest.raises(ValidationError, match="fused_kernels run on GPUs: set gpus_per_worker, or leave them off"):
        TrainRuntime(fused_kernels=True)
    assert TrainRuntime(fused_kernels=True, gpus_per_worker=1).fused_kernels
