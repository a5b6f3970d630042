"""LoRA arithmetic equals the dense average of merged weights, both forms, and gives adapters that are served."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from plad_ray.config import Model
from plad_ray.errors import PladError
from plad_ray.generate.vllm_engine import check_adapter, check_lora_rank
from plad_ray.merge import lora
from plad_ray.merge.base import merge_adapter
from plad_ray.merge.weights import layers_of
from plad_ray.models.load import load_model
from plad_ray.models.policy import resolve
from plad_ray.train.adapter import write_note
from tests.merge.ends import LAYERS, dense, dense_log_probs, log_probs, make_end, merged, policy_of

WEIGHTS = {"plain": [0.2] * LAYERS, "low": [0.7, 0, 0, 0], "each": [0.1, 0.9, 1.0, 0.0]}


def averaged(base, start, distilled, folder, by_layer, outside=0.0):
    """The averaged adapter's folder and policy."""
    ends = None if start is None else lora.read(start), lora.read(distilled)
    weights = dict.fromkeys(ends[1].modules, outside)
    for weight, names in zip(by_layer, layers_of(ends[1].modules), strict=True):
        weights |= dict.fromkeys(names, weight)
    lora.write(lora.average(*ends, weights), ends[1], folder)
    write_note(folder, policy_of(base))
    return policy_of(base, folder)


def check_equals_dense(base, start, distilled, policy, by_layer, outside=0.0):
    weights = dense(policy_of(base, start), policy_of(base, distilled), {None: outside, **dict(enumerate(by_layer))})
    for name, weight in merged(policy).items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-6, atol=1e-6)
    served = log_probs(load_model(policy))
    torch.testing.assert_close(served, dense_log_probs(base, weights), rtol=0, atol=1e-5)
    assert (served - log_probs(load_model(policy_of(base, distilled)))).abs().max() > 1e-3, "averaging acts"


@pytest.mark.parametrize("by_layer", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("form", ["fresh adapter", "continued adapter"])
def test_equals_the_dense_average(form, by_layer, base, start, distilled, tmp_path):
    start = start if form == "continued adapter" else None
    policy = averaged(base, start, distilled, tmp_path / "out", by_layer)
    check_equals_dense(base, start, distilled, policy, by_layer)
    assert lora.read(policy.adapter).config["r"] == (8 if start else 4)


@pytest.mark.parametrize("form", ["fresh adapter", "continued adapter"])
def test_the_lm_head_is_outside_the_layers(form, base, tmp_path):
    modules = ("q_proj", "down_proj", "lm_head")
    distilled = make_end(base, tmp_path / "distilled", seed=4, target_modules=modules)
    start = make_end(base, tmp_path / "start", seed=3, target_modules=modules) if form == "continued adapter" else None
    policy = averaged(base, start, distilled, tmp_path / "out", WEIGHTS["each"], outside=0.4)
    check_equals_dense(base, start, distilled, policy, WEIGHTS["each"], outside=0.4)


def test_ends_with_other_scalings(base, start, distilled, tmp_path):
    """The start scaled by 8 / √4 (rank-stabilised), the distilled by 32 / 4."""
    other = shutil.copytree(start, tmp_path / "other")
    config = json.loads((other / lora.CONFIG).read_text()) | {"lora_alpha": 8, "use_rslora": True}
    (other / lora.CONFIG).write_text(json.dumps(config))
    assert lora.read(other).modules.popitem()[1].scaling == 4
    policy = averaged(base, other, distilled, tmp_path / "out", WEIGHTS["each"])
    check_equals_dense(base, other, distilled, policy, WEIGHTS["each"])


def test_b_0_and_b_1_are_the_ends_exactly(base, start, distilled, tmp_path):
    ends = {"distilled": [0.0] * LAYERS, "start": [1.0] * LAYERS}
    folders = {"distilled": distilled, "start": start}
    for name, by_layer in ends.items():
        policy = averaged(base, start, distilled, tmp_path / name, by_layer, outside=by_layer[0])
        assert lora.read(policy.adapter).config["r"] == 4
        for key, tensor in load_file(folders[name] / lora.TENSORS).items():
            assert torch.equal(load_file(tmp_path / name / lora.TENSORS)[key], tensor), key
        for key, weight in merged(policy_of(base, folders[name])).items():
            assert torch.equal(merged(policy)[key], weight), key
    fresh = averaged(base, None, distilled, tmp_path / "base", [1.0] * LAYERS, outside=1.0)
    for key, weight in merged(policy_of(base)).items():
        assert torch.equal(merged(fresh)[key], weight), key


def test_a_stacked_adapter_is_served_and_merges(base, start, distilled, tmp_path):
    policy = averaged(base, start, distilled, tmp_path / "out", WEIGHTS["plain"])
    check_adapter(policy.adapter)
    config = lora.read(policy.adapter).config
    assert (config["r"], config["lora_alpha"], check_lora_rank(config["r"])) == (8, 64, 8), "alpha / r as before"
    folder = merge_adapter(policy, tmp_path / "whole")
    whole = log_probs(load_model(resolve(Model(path=str(folder)))))
    torch.testing.assert_close(whole, log_probs(load_model(policy)), rtol=0, atol=1e-5)


def test_a_rank_that_vllm_does_not_serve_is_refused(base, tmp_path):
    ends = [make_end(base, tmp_path / str(seed), seed=seed, r=260, target_modules=("q_proj",)) for seed in (1, 2)]
    with pytest.raises(PladError, match="rank 520, and vLLM serves at most 512"):
        averaged(base, *ends, tmp_path / "out", WEIGHTS["plain"])


def test_what_cannot_be_averaged_is_refused(base, distilled, tmp_path):
    other = make_end(base, tmp_path / "other", seed=5, target_modules=("q_proj", "o_proj"))
    with pytest.raises(
        PladError, match=r"did not start from .*other: model\.layers\.0\.self_attn\.o_proj is adapted by"
    ):
        averaged(base, other, distilled, tmp_path / "out", WEIGHTS["plain"])
    tensors = load_file(other / lora.TENSORS)
    save_file(tensors | {"base_model.model.model.norm.weight": torch.ones(64)}, other / lora.TENSORS)
    with pytest.raises(PladError, match=r"model\.norm\.weight is not a LoRA factor"):
        lora.read(other)
    config = json.loads((other / lora.CONFIG).read_text())
    (other / lora.CONFIG).write_text(json.dumps(config | {"rank_pattern": {"q_proj": 2}}))
    with pytest.raises(PladError, match="it has a rank_pattern"):
        lora.read(other)
