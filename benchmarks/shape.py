"""The model and the pairs that both sides train on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from plad_ray.train.layout import Row


@dataclass(frozen=True)
class Shape:
    """A step of ``pairs`` prompts of ``prompt`` tokens with ``candidates`` answers of ``answer`` tokens each."""

    layers: int = 6
    hidden: int = 512
    intermediate: int = 1376
    heads: int = 8
    kv_heads: int | None = None  # None: as many
    vocabulary: int = 32_000
    pairs: int = 4
    prompt: int = 350
    answer: int = 30
    candidates: int = 2
    rank: int = 8
    dtype: str = "float32"
    device: str = "cpu"


#: A Llama of 1.5 billion parameters (Llama-3.2-1B's shape, embeddings not tied) on one GPU, 16 pairs a step.
BILLION = Shape(
    layers=16,
    hidden=2048,
    intermediate=8192,
    heads=32,
    kv_heads=8,
    vocabulary=128_256,
    pairs=16,
    dtype="bfloat16",
    device="cuda",
)


def lora(shape: Shape) -> LoraConfig:
    return LoraConfig(
        r=shape.rank, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )


def base_model(shape: Shape) -> LlamaForCausalLM:
    """Random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        max_position_embeddings=max(1024, shape.prompt + shape.answer),
        use_cache=False,
    )
    with torch.device(shape.device):
        model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, shape.dtype), attn_implementation="sdpa")
    assert isinstance(model, LlamaForCausalLM)
    return model


def lora_model(shape: Shape) -> PeftModel:
    model = get_peft_model(base_model(shape), lora(shape), autocast_adapter_dtype=False)
    assert isinstance(model, PeftModel)
    return model


def rows(shape: Shape, count: int) -> list[Row]:
    """Random tokens; the last of an answer is EOS (2)."""
    draw = np.random.default_rng(0)

    def tokens(length: int) -> np.ndarray:
        return draw.integers(3, shape.vocabulary, length).astype(np.int32)

    def answer() -> np.ndarray:
        return np.append(tokens(shape.answer - 1), np.int32(2))

    scores = tuple(float(-k) for k in range(shape.candidates))
    return [Row(tokens(shape.prompt), tuple(answer() for _ in range(shape.candidates)), scores) for _ in range(count)]
