"""GPT-Neo's local layers see a window of tokens: padding on the right, and prompts longer than it, change no value."""

from __future__ import annotations

import numpy as np
import torch

from plad_ray.config import Model
from plad_ray.models.load import load_model
from plad_ray.models.policy import resolve
from plad_ray.objectives import build
from plad_ray.train.layout import Row, concatenate
from plad_ray.train.logprobs import ResponseValues


def test_values_equal_a_plain_forward_beyond_the_window(tiny_gpt_neo):
    model = load_model(resolve(Model(path=str(tiny_gpt_neo))))
    assert model.config.window_size == 4
    generator = np.random.default_rng(0)
    rows = [
        Row(
            generator.integers(3, 43, prompt).astype(np.int32),
            tuple(generator.integers(3, 43, length).astype(np.int32) for length in lengths),
            (0.0, 0.0),
        )
        for prompt, lengths in ((2, (3, 9)), (17, (6, 1)), (30, (12, 5)))
    ]
    plain = torch.zeros(3, 2, 12)
    with torch.no_grad():
        for b, row in enumerate(rows):
            for k, candidate in enumerate(row.candidates):
                ids = torch.from_numpy(np.concatenate([row.prompt, candidate])).long()
                logps = model(input_ids=ids[None]).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
                plain[b, k, : len(candidate)] = logps.gather(1, ids[len(row.prompt) :, None])[:, 0]
        values = ResponseValues(model, build("plad_rank", {}))(concatenate(rows, pad=2))["logp"]
    torch.testing.assert_close(values, plain, rtol=1e-5, atol=1e-5)
