"""Models and the two roles that use them: what they are, how they are tuned, what they generate."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from plad_ray.config.base import Count, Fraction, Section, Temperature
from plad_ray.config.training import Sft


class Scratch(Section):
    """A model trained from random weights in its SFT stage."""

    model_type: str = "llama"
    config: dict[str, int | float | bool | str] = Field(description="arguments of the transformers config class")
    tokenizer: Literal["words", "bpe"] = "bpe"
    vocab_size: Count = Field(4096, description="upper bound; `words` keeps every word of the train shard below it")


#: what the openai engine sends itself: where each is set
SENT = {
    "model": "model.api.name",
    "messages": "the prompts",
    "prompt": "the prompts",
    "temperature": "draw.temperatures",
    "seed": "seed (the experiment's; every request has its own)",
    "max_tokens": "generate.max_tokens",
    "max_completion_tokens": "generate.max_tokens",
    "top_p": "generate.top_p",
    "stop": "generate.stop",
    "n": "draw.samples",
    "stream": "nothing: answers are read whole",
}


class Api(Section):
    """A model behind an OpenAI-compatible endpoint: text in, text out. Its key comes from the environment only
    (``runtime.<role>.api.api_key_env``)."""

    base_url: str = Field(description="e.g. https://api.openai.com/v1")
    name: str = Field(description="the endpoint's name of the model")
    endpoint: Literal["chat", "completions"] = "chat"
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens",
        description="what the endpoint calls the longest response (reasoning models of OpenAI: the latter)",
    )
    send_seed: bool = Field(True, description="false for endpoints that refuse `seed`; sampling is then not repeatable")
    extra_body: dict[str, Any] = Field({}, description="further fields of every request, e.g. {reasoning_effort: low}")

    @model_validator(mode="after")
    def _no_secrets(self) -> Api:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("model.api.base_url must be an http(s) address such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "model.api.base_url is recorded with the results, so it may hold no user, password or query; the key goes "
                "into the environment variable that runtime.<role>.api.api_key_env names"
            )
        for key in self.extra_body:
            if key in SENT:
                raise ValueError(f"model.api.extra_body.{key}: the place for it is {SENT[key]}")
        return self


class Model(Section):
    path: str | None = Field(None, description="hub id, local folder or s3://… or gs://… folder of the base model")
    revision: str | None = None
    adapter: str | None = Field(
        None, description="folder (local, s3://… or gs://…) of an existing PEFT adapter on `path`"
    )
    scratch: Scratch | None = None
    api: Api | None = Field(None, description="a model behind an OpenAI-compatible endpoint, in place of `path`")
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
        if sum(source is not None for source in (self.path, self.scratch, self.api)) != 1:
            raise ValueError(
                "a model needs exactly one of path (hub id or folder), scratch (made here) and api (behind an endpoint)"
            )
        if self.api is not None:
            self._only_api()
        if self.adapter and self.scratch:
            raise ValueError("model.adapter needs model.path: a model made from scratch has no adapter yet")
        return self

    def _only_api(self) -> None:
        """What describes weights or a tokenizer means nothing for a model that is only known by its endpoint."""
        set_ = [n for n, f in type(self).model_fields.items() if n != "api" and getattr(self, n) != f.default]
        if set_:
            hint = (
                "; data.max_prompt_chars drops long prompts" if {"max_length", "max_prompt_tokens"} & set(set_) else ""
            )
            raise ValueError(
                f"model.{set_[0]} is for models with weights here, and model.api has none; leave it out{hint}"
            )


class Draw(Section):
    """What one role generates for the prompts of the distill shard."""

    temperatures: tuple[Temperature, ...] = (0.7,)
    samples: Count = 1


class Role(Section):
    model: Model
    sft: Sft | None = Field(None, description="null: already tuned")
    engine: Literal["vllm", "transformers", "openai"] = "vllm"
    draw: Draw = Draw()

    @model_validator(mode="after")
    def _engine_of_an_api(self) -> Role:
        if (self.model.api is not None) != (self.engine == "openai"):
            raise ValueError(
                f"engine {self.engine} does not fit the model: engine openai serves model.api, and only that; the others "
                "serve model.path and model.scratch"
            )
        if self.model.api is not None and self.sft is not None:
            raise ValueError("sft needs weights, and a model behind an API has none here; leave sft out")
        return self

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
