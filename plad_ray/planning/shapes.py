"""How large a model is, from its config alone: it is built on PyTorch's meta device, without any weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from plad_ray.config import Lora, Model
from plad_ray.errors import PladError
from plad_ray.models.load import DTYPES, auto_class, config_of, is_seq2seq
from plad_ray.remote import is_uri

#: bytes of a weight in 4 bits: NF4 with a 32-bit scale for every 64 of them (bitsandbytes' default)
FOUR_BIT = 0.5 + 4 / 64


@dataclass(frozen=True)
class Shape:
    """A model and what it is held in."""

    config: PretrainedConfig
    dtype: str
    four_bit: bool = False

    @cached_property
    def model(self) -> PreTrainedModel:
        """On the meta device: shapes, no numbers."""
        with torch.device("meta"):
            return auto_class(self.config).from_config(self.config, dtype=DTYPES[self.dtype])

    @cached_property
    def parameters(self) -> int:
        """Tied weights count once."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def head(self) -> int:
        """Weights of the LM head."""
        return int(self._head.numel())

    @cached_property
    def body(self) -> int:
        """Weights that every token is multiplied with: all matrices but embeddings, LM head and encoder."""
        return self._matrices(self.model) - self.encoder

    @cached_property
    def encoder(self) -> int:
        """Matrices that every token of a prompt is multiplied with before there is a response; a decoder alone has none."""
        return self._matrices(self.model.get_encoder()) if self.seq2seq else 0

    @property
    def cross(self) -> int:
        """Of ``body``, matrices that make an encoded prompt token the keys and values of every decoder layer."""
        return self._kv_values * int(self.text.hidden_size) if self.seq2seq else 0

    def _matrices(self, part: nn.Module) -> int:
        apart = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding)}
        apart.add(id(self._head))
        return sum(p.numel() for p in part.parameters() if p.dim() >= 2 and id(p) not in apart)

    @property
    def _head(self) -> Any:
        embeddings: Any = self.model.get_output_embeddings()
        return embeddings.weight

    @property
    def bytes_each(self) -> float:
        """Of a value of activations and of weights that are not in 4 bits."""
        return DTYPES[self.dtype].itemsize

    @property
    def weights(self) -> float:
        """Bytes. In 4 bits: the matrices of the body; embeddings and LM head stay."""
        if not self.four_bit:
            return self.parameters * self.bytes_each
        return self.body * FOUR_BIT + (self.parameters - self.body) * self.bytes_each

    @property
    def layers(self) -> int:
        """Of the decoder."""
        return int(self.text.num_hidden_layers)

    @property
    def encoder_layers(self) -> int:
        return int(self.config.get_text_config(encoder=True).num_hidden_layers) if self.seq2seq else 0

    @cached_property
    def text(self) -> PretrainedConfig:
        whole = self.model.get_decoder().config if self.seq2seq else self.config  # T5's decoder has its own depth
        return whole.get_text_config(decoder=True)

    @property
    def seq2seq(self) -> bool:
        return is_seq2seq(self.config)

    @property
    def kv_token(self) -> float:
        """Bytes of the KV cache for one token of prompt or response: a key and a value of every layer's KV heads (sliding
        windows not used)."""
        return self._kv_values * self.bytes_each

    @property
    def _kv_values(self) -> int:
        heads = getattr(self.text, "num_key_value_heads", None) or self.text.num_attention_heads
        size = getattr(self.text, "head_dim", None) or self.text.hidden_size // self.text.num_attention_heads
        return int(2 * self.layers * heads * size)

    def lora(self, lora: Lora) -> nn.Module:
        """A copy of the model with an adapter, on the meta device. Raises PladError for modules that are not there."""
        from plad_ray.models.policy import Policy
        from plad_ray.train.adapter import with_lora

        fresh: Any = Shape(self.config, self.dtype).model
        fresh.name_or_path = "planned"
        with torch.device("meta"):
            return with_lora(fresh, Policy("planned", None, None, False, ""), lora, 0)


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def shape_of(role: str, model: Model, given: Mapping[str, Path]) -> Shape | None:
    """The shape of a role's model; None behind an API. ``given``: config.json files by role, for models elsewhere.

    Raises PladError when there is no config.json on this machine: nothing is downloaded.
    """
    if model.api is not None:
        return None
    path = None if model.path is None else str(given.get(role, model.path))
    try:
        config = config_of(model, path, download=False)
    except PladError:
        if model.scratch is not None:
            raise
        where = "from there" if is_uri(str(model.path)) else f"with `hf download {model.path} config.json`"
        raise PladError(
            f"{role}: the config.json of {path} is not on this machine, and plad plan downloads nothing; get it "
            f"{where}, or name a copy: --config {role}=config.json"
        ) from None
    if model.scratch is not None:
        config.decoder_start_token_id = 0  # some token; the tokenizer will say which
    config.use_cache = False
    return Shape(config, model.dtype, model.load_in_4bit)
