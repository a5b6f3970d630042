"""Which layout a run takes: shared prompts where every model that reads the batch is exact on them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from plad_ray.errors import PladError
from plad_ray.models.load import is_seq2seq
from plad_ray.objectives.base import Objective
from plad_ray.train.forward import causal_model
from plad_ray.train.layout import CONCATENATED, PROVEN, Layout, Row
from plad_ray.train.logprobs import ResponseValues
from plad_ray.train.masks import KINDS, layer_kinds
from plad_ray.train.seq2seq import seq2seq_layout
from plad_ray.train.shared import SHARED

#: Model types that are known to differ, and why.
INEXACT = {"gpt_neo": "its local attention counts indices, not positions"}

#: Sizes of the model that stands for an unknown type in its probe; a window must be shorter than the probe's rows.
PROBE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PROBE_WINDOW = 8
PROBE_LAYERS = 8
PROBE_TOLERANCE = 1e-4


def choose_layout(
    wanted: str, student: nn.Module, frozen: Mapping[str, nn.Module] | None = None
) -> tuple[Layout, str | None]:
    """The layout for ``runtime.train.layout`` = ``wanted``, and why it is not the shared one where it could have been.

    ``frozen``: by name, the modules that read the student's batches. Raises PladError when ``shared`` is asked of a model
    that it is not exact for.
    """
    if is_seq2seq(causal_model(student).config):
        if wanted == "concatenated":
            raise PladError("runtime.train.layout concatenated: an encoder-decoder encodes each prompt once; use auto")
        return seq2seq_layout(causal_model(student).config), None
    if wanted == "concatenated":
        return CONCATENATED, None
    for name, module in {"the student": student, **(frozen or {})}.items():
        model = causal_model(module)
        obstacle = obstacle_to_sharing(model)
        if obstacle is None:
            continue
        why = f"{name} is a {model.config.get_text_config().model_type} model: {obstacle}"
        if wanted == "shared":
            raise PladError(f"runtime.train.layout shared would be inexact ({why}); use auto or concatenated")
        return CONCATENATED, f"prompts are not shared by their candidates: {why}"
    return SHARED, None


def obstacle_to_sharing(model: PreTrainedModel) -> str | None:
    """Why ``model`` would not be exact on shared prompts; None: it is."""
    config = model.config.get_text_config()
    if config.model_type in INEXACT:
        return INEXACT[config.model_type]
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation}, and only sdpa takes any mask"
    strange = sorted(set(layer_kinds(config) or ()) - set(KINDS))
    if strange:
        return f"it has layers of kind {', '.join(strange)}"
    return None if config.model_type in PROVEN else _probe(model)


def _probe(model: PreTrainedModel) -> str | None:
    """Both layouts on a tiny random model of the same type in fp32, its rows longer than every window."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = tiny_config(model.config.get_text_config())
            tiny = type(model)._from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()
            far = _distance(tiny)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError, AssertionError) as error:
        return (
            f"it is not among the proven types, and trying it on a tiny model failed ({type(error).__name__}: {error})"
        )
    if far <= PROBE_TOLERANCE:
        return None
    return f"it is not among the proven types, and log-probs of a tiny model differ by {far:.2g}"


def tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """``config`` with small sizes, short windows and as many layers as it takes to have every kind, at least two."""
    tiny = copy.deepcopy(config)
    for name in [*vars(config), *PROBE]:
        value: Any = getattr(config, name, None)
        if name in PROBE and (name in vars(config) or name in config.attribute_map):
            setattr(tiny, name, PROBE[name])
        elif ("window" in name or "chunk" in name) and isinstance(value, int) and not isinstance(value, bool):
            setattr(tiny, name, min(value, PROBE_WINDOW))
    kinds = layer_kinds(config)
    layers = 2 if kinds is None else max(2, *(kinds.index(kind) + 1 for kind in set(kinds)))
    if layers > PROBE_LAYERS:
        raise ValueError(f"its kinds of layers only show after {layers}")
    tiny.num_hidden_layers = min(layers, config.num_hidden_layers)
    if kinds is not None:
        tiny.layer_types = kinds[: tiny.num_hidden_layers]
    return tiny


@torch.no_grad()
def _distance(model: PreTrainedModel) -> float:
    """Largest difference between both layouts' log-probs."""
    draw = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return draw.integers(3, PROBE["vocab_size"], count).astype(np.int32)

    rows = [Row(tokens(p), tuple(map(tokens, lengths)), (0.0,) * len(lengths)) for p, lengths in PROBE_ROWS]
    values = ResponseValues(model, Objective())
    plain, shared = (values(layout.collate(rows, 0, 1))["logp"] for layout in (CONCATENATED, SHARED))
    return float((plain - shared).abs().max())


#: Prompt and candidate lengths; the short rows lie in one sequence.
PROBE_ROWS = ((40, (12, 9, 15)), (5, (14,)), (12, (10, 11)))
