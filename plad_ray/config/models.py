"""Models and the two roles that use them: what they are, how they are tuned, what they generate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from plad_ray.config.base import Count, Fraction, Section, Temperature
from plad_ray.config.training import Sft


class Scratch(Section):
    """A model trained from random weights in its SFT stage."""

    model_type: str = "llama"
    config: dict[str, int | float | bool | str] = Field(description="arguments of the transformers config class")
    tokenizer: Literal["words", "bpe"] = "bpe"
    vocab_size: Count = Field(4096, description="upper bound; `words` keeps every word of the train shard below it")


class Model(Section):
    path: str | None = Field(None, description="hub id or local folder of the base model")
    revision: str | None = None
    adapter: str | None = Field(None, description="local folder of an existing PEFT adapter on `path`")
    scratch: Scratch | None = None
    template: Literal["plain", "chat"] = "plain"
    dtype: Literal["float32", "bfloat16"] = "float32"
    load_in_4bit: bool = False
    trust_remote_code: bool = False
    max_length: Count = Field(512, description="tokens of prompt + response; of an encoder-decoder, of either side")
    max_prompt_tokens: Count | None = Field(None, description="longer prompts are cut on the left when set, else fail")
    eos_token: str | None = Field(None, description="when the tokenizer's own is absent or not what ends a response")
    stop_token_ids: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("a model needs exactly one of path (hub id or folder) and scratch (made here)")
        if self.adapter and self.scratch:
            raise ValueError("model.adapter needs model.path: a model made from scratch has no adapter yet")
        return self


class Draw(Section):
    """What one role generates for the prompts of the distill shard."""

    temperatures: tuple[Temperature, ...] = (0.7,)
    samples: Count = 1


class Role(Section):
    model: Model
    sft: Sft | None = Field(None, description="null: already tuned")
    engine: Literal["vllm", "transformers"] = "vllm"
    draw: Draw = Draw()

    @model_validator(mode="after")
    def _scratch_needs_full_sft(self) -> Role:
        if self.model.scratch and (self.sft is None or self.sft.method != "full"):
            raise ValueError(
                "model.scratch needs sft.method full: random weights are no base for LoRA or for generation"
            )
        if self.model.load_in_4bit and self.sft is not None and self.sft.method == "full":
            raise ValueError("model.load_in_4bit cannot be trained with sft.method full; use lora")
        return self


class Generate(Section):
    max_tokens: Count = 64
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="0: off")
    stop: tuple[str, ...] = Field((), description="text from the first of these on is cut")
    strip_reasoning: tuple[str, str] | None = Field(None, description="opening and closing mark, e.g. <think> </think>")
    max_error_fraction: Fraction = 0.01
