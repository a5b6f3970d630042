"""Base + adapter merged gives the adapter's output."""

from __future__ import annotations

import pytest
import torch

from plad_ray.config import Model
from plad_ray.errors import PladError
from plad_ray.merge.base import merge_adapter
from plad_ray.models.load import load_model
from plad_ray.models.policy import resolve
from tests.models.test_policy import make_adapter


def test_merge_equals_the_adapter(tiny_llama, tmp_path):
    policy = resolve(Model(path=str(tiny_llama), adapter=str(make_adapter(tiny_llama, tmp_path / "adapter"))))
    merged = resolve(Model(path=str(merge_adapter(policy, tmp_path / "merged"))))
    ids = torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(merged)(input_ids=ids).logits, load_model(policy)(input_ids=ids).logits, rtol=1e-5, atol=1e-5
        )


def test_refusals(tiny_llama, tmp_path):
    with pytest.raises(PladError, match="no adapter to merge"):
        merge_adapter(resolve(Model(path=str(tiny_llama))), tmp_path / "out")
    policy = resolve(Model(path=str(tiny_llama), adapter=str(make_adapter(tiny_llama, tmp_path / "adapter"))))
    with pytest.raises(PladError, match="is not empty"):
        merge_adapter(policy, tmp_path)
