"""Load a policy: tokenizer, base model, adapter."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from plad_ray.config import Model
from plad_ray.errors import PladError
from plad_ray.models.policy import Policy, base_place

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_tokenizer(policy: Policy) -> PreTrainedTokenizerBase:
    """The adapter's tokenizer where it brings one, else the base's."""
    own = policy.adapter is not None and (Path(policy.adapter) / "tokenizer_config.json").is_file()
    where = policy.adapter if own and policy.adapter else policy.base
    revision = None if own else policy.revision
    kind: Any = PreTrainedTokenizerFast if _is_plain(Path(where)) else AutoTokenizer
    try:
        return kind.from_pretrained(where, revision=revision, trust_remote_code=policy.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise PladError(f"no tokenizer can be loaded from {where}: {_first_line(error)}") from error


def _is_plain(folder: Path) -> bool:
    """Whether a folder's tokenizer says that it is no family's own. AutoTokenizer makes it one all the same for some model
    types (Qwen2), with other tokens (seen in transformers 5.19)."""
    file = folder / "tokenizer_config.json"
    kind = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class") if file.is_file() else None
    return kind in ("TokenizersBackend", "PreTrainedTokenizerFast")


@lru_cache(maxsize=64)
def load_config(policy: Policy) -> PretrainedConfig:
    """The base model's transformers config; the same object for the same policy, so not to be changed."""
    try:
        return AutoConfig.from_pretrained(
            policy.base, revision=policy.revision, trust_remote_code=policy.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise PladError(f"no model config can be loaded from {policy.base}: {_first_line(error)}") from error


def config_of(model: Model, path: str | None = None, download: bool = True) -> PretrainedConfig:
    """The transformers config of a role's model, read from ``path`` where its own is elsewhere. Raises PladError when it
    cannot be read."""
    if model.scratch is not None:
        from plad_ray.models.scratch import scratch_config

        return scratch_config(model.scratch, model.scratch.vocab_size)
    assert model.path is not None
    try:
        return AutoConfig.from_pretrained(
            path or base_place(model.path),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            local_files_only=not download,
        )
    except (OSError, ValueError, KeyError) as error:  # JSON that is none is a ValueError
        raise PladError(f"model.path {model.path}: its config.json cannot be read: {_first_line(error)}") from None


def is_seq2seq(config: PretrainedConfig) -> bool:
    """Whether it is an encoder-decoder (T5, BART): the prompt is its encoder's input, the response its decoder's."""
    return bool(getattr(config, "is_encoder_decoder", False))


def auto_class(config: PretrainedConfig) -> Any:
    """The class of transformers that makes a language model of ``config``."""
    return AutoModelForSeq2SeqLM if is_seq2seq(config) else AutoModelForCausalLM


def load_base(policy: Policy, dtype: str = "float32", four_bit: bool = False) -> PreTrainedModel:
    """The base model without its adapter, in ``dtype`` (float32 | bfloat16), on the CPU unless ``four_bit``."""
    extra: dict[str, Any] = {}
    if four_bit:
        extra = {"quantization_config": _four_bit(dtype), "device_map": {"": torch.cuda.current_device()}}
    try:
        return auto_class(load_config(policy)).from_pretrained(
            policy.base,
            revision=policy.revision,
            dtype=DTYPES[dtype],
            trust_remote_code=policy.trust_remote_code,
            **extra,
        )
    except (OSError, ValueError) as error:
        raise PladError(f"no language model can be loaded from {policy.base}: {_first_line(error)}") from error


def load_model(policy: Policy, dtype: str = "float32", four_bit: bool = False) -> torch.nn.Module:
    """Base plus adapter (a PeftModel when there is one), in evaluation mode; to train, see train/adapter.py."""
    model: torch.nn.Module = load_base(policy, dtype, four_bit)
    if policy.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, policy.adapter)
    return model.eval()


def _four_bit(dtype: str) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise PladError("model.load_in_4bit needs the bitsandbytes package, which is not installed") from None
    if not torch.cuda.is_available():
        raise PladError("model.load_in_4bit needs a GPU, and there is none here; use dtype bfloat16 or float32")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[dtype])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
