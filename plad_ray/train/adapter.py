"""What is trained and what comes out: a LoRA adapter (fresh, or the policy's own continued) or a whole model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plad_ray.config import Lora
from plad_ray.errors import PladError
from plad_ray.models.load import auto_class, is_seq2seq
from plad_ray.models.policy import NOTE, Policy


def with_lora(model: PreTrainedModel, policy: Policy, lora: Lora, seed: int) -> nn.Module:
    """``model`` with a trainable adapter: the policy's, continued, else a fresh one (B = 0, A seeded).

    Raises PladError when PEFT knows no default modules for the architecture, or the adapter to continue has another
    rank, alpha or other modules than asked for.
    """
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

    if policy.adapter is not None:
        config = PeftConfig.from_pretrained(policy.adapter)
        _check_same_shape(config, lora, policy.adapter)
        config.lora_dropout = lora.dropout
        config.inference_mode = False
        return PeftModel.from_pretrained(model, policy.adapter, is_trainable=True, config=config)
    targets = list(lora.target_modules) if isinstance(lora.target_modules, tuple) else lora.target_modules
    fresh = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="SEQ_2_SEQ_LM" if is_seq2seq(model.config) else "CAUSAL_LM",
        base_model_name_or_path=policy.base,
        revision=policy.revision,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return get_peft_model(model, fresh)
    except ValueError as error:
        raise PladError(
            f"lora.target_modules {lora.target_modules}: {error}; all-linear works with any model"
        ) from error


def save_adapter(
    model: nn.Module, weights: dict[str, Tensor], folder: Path, tokenizer: PreTrainedTokenizerBase, policy: Policy
) -> None:
    """A plain PEFT adapter folder from gathered full ``weights`` (never ``save_pretrained``: ZeRO-3 holds shards)."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.peft_config["default"]  # type: ignore[index]
    trained_as, config.inference_mode = config.inference_mode, True
    config.base_model_name_or_path, config.revision = policy.base, policy.revision
    config.save_pretrained(folder)
    config.inference_mode = trained_as
    state = get_peft_model_state_dict(model, state_dict=dict(weights), save_embedding_layers=False)
    save_file({name: t.contiguous() for name, t in state.items()}, folder / "adapter_model.safetensors")
    tokenizer.save_pretrained(folder)
    write_note(folder, policy)


def save_model(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    eos: Sequence[int],
    dtype: torch.dtype,
) -> None:
    """A whole model folder from gathered full ``weights``; its configs carry the EOS that was learned."""
    copy = auto_class(model.config).from_config(model.config, dtype=dtype)
    for name in weights.keys() - dict(copy.named_parameters()).keys():
        _untie(copy, name)
    missing, unexpected = copy.load_state_dict(weights, strict=False)
    tied = set(getattr(copy, "all_tied_weights_keys", None) or {})
    lost = [name for name in missing if name not in tied and name in dict(copy.named_parameters())]
    assert not lost and not unexpected, f"weights that do not fit the model: {lost} {unexpected}"
    copy.tie_weights(recompute_mapping=False)
    copy.config.eos_token_id = eos[0]
    copy.generation_config = model.generation_config
    copy.generation_config.eos_token_id = eos[0] if len(eos) == 1 else list(eos)
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _untie(model: PreTrainedModel, name: str) -> None:
    """Give ``name`` a tensor of its own: tied by the config, but not by the checkpoint that was trained (T5 v1.1)."""
    module, _, leaf = name.rpartition(".")
    shared = getattr(model.get_submodule(module), leaf)
    setattr(model.get_submodule(module), leaf, nn.Parameter(torch.empty_like(shared)))
    model.all_tied_weights_keys.pop(name)


def write_note(folder: Path, policy: Policy, **more: Any) -> None:
    """What the adapter was trained on, so that another base is refused; and ``more`` to say (JSON values)."""
    note = {"base": policy.base, "revision": policy.revision, "base_hash": policy.base_hash, **more}
    (folder / NOTE).write_text(json.dumps(note, indent=1, sort_keys=True))


def _check_same_shape(config: Any, lora: Lora, adapter: str) -> None:
    asked: dict[str, Any] = {"r": lora.r, "lora_alpha": lora.alpha}
    if lora.target_modules is not None and lora.target_modules != "all-linear":
        asked["target_modules"] = set(lora.target_modules)
    for key, value in asked.items():
        has = getattr(config, key)
        has = set(has) if isinstance(value, set) else has
        if has != value:
            raise PladError(
                f"lora.{key.removeprefix('lora_')} {value} does not fit the adapter that training continues: "
                f"{adapter} has {has}; give the same"
            )
