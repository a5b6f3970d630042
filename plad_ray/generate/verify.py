"""Does an engine really serve the adapter it was given, and with the trainer's arithmetic?

Where an engine serves adapters, the first few requests of each of its policies (the bare base is one) bring back the
log-prob of each token the engine sampled. They are compared with a plain transformers forward of the policy and of the
bare base, in the model's own dtype.
"""

from __future__ import annotations

from typing import Any

from plad_ray.errors import PladError
from plad_ray.generate.pools import EnginePool
from plad_ray.models.policy import Policy

#: verified requests a policy
ROWS = 4
#: allowed |engine − transformers| a token in nats: the largest in float32, the mean in bfloat16 (8 bits of mantissa:
#: single rare tokens differ by more)
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


def measure(policy: Policy, dtype: str, samples: list[dict[str, Any]], four_bit: bool = False) -> dict[str, float]:
    """Differences between the engine's log-probs and those of transformers, in nats a token.

    ``samples``: ``prompt_ids``, ``ids``, ``logprobs``. Returns ``max`` and ``mean`` |engine − policy|, ``base`` (mean
    |engine − base|), ``effect`` (largest |policy − base|), ``zero`` (1 when no LoRA product adds anything).
    """
    import torch

    from plad_ray.models.load import load_model

    policy.fetch()
    model: Any = load_model(policy, dtype, four_bit=four_bit)
    gaps, base_gaps, effects = [], [], []
    for sample in samples:
        engine = torch.tensor(sample["logprobs"], dtype=torch.float64)
        adapted = _logprobs(model, sample)
        bare = adapted
        if policy.adapter is not None:
            with model.disable_adapter():
                bare = _logprobs(model, sample)
        gaps.append((engine - adapted).abs())
        base_gaps.append((engine - bare).abs())
        effects.append((adapted - bare).abs())
    gap, base_gap, effect = torch.cat(gaps), torch.cat(base_gaps), torch.cat(effects)
    return {
        "max": gap.max().item(),
        "mean": gap.mean().item(),
        "base": base_gap.mean().item(),
        "effect": effect.max().item(),
        "zero": float(_is_zero(model)),
        "tokens": float(len(gap)),
    }


def judge(name: str, pool: EnginePool, found: dict[str, float]) -> None:
    """PladError with the numbers when the engine does not act as the adapter says."""
    dtype = pool.model.dtype
    served = f"adapter {pool.adapters[name]}" if name in pool.adapters else f"base {pool.base.base}"
    numbers = (
        f"on {found['tokens']:.0f} tokens |engine − policy| is {found['max']:.2e} at most, {found['mean']:.2e} in the mean; "
        f"|engine − base| {found['base']:.2e} in the mean; |policy − base| {found['effect']:.2e} at most"
    )
    if found["effect"] == 0 and not found["zero"]:
        raise PladError(f"policy {name}: {served} does not act: it has weights, but {numbers}")
    measured = found["max" if dtype == "float32" else "mean"]
    if not measured <= TOLERANCE[dtype]:  # not: NaN is no agreement either
        raise PladError(
            f"policy {name}: engine {pool.engine} and transformers disagree about {served} (allowed in {dtype}: "
            f"{TOLERANCE[dtype]:g}): {numbers}. Generated text would not be the trained model's; "
            "runtime.verify_engine: false skips this check"
        )


def _logprobs(model: Any, sample: dict[str, Any]) -> Any:
    """float64 log-prob [N] of each sampled id."""
    import torch

    from plad_ray.models.load import is_seq2seq
    from plad_ray.models.sampling import decoder_start

    prompt, ids = sample["prompt_ids"], sample["ids"]
    device = next(model.parameters()).device
    if is_seq2seq(model.config):
        read = {"input_ids": [prompt], "decoder_input_ids": [[decoder_start(model.config), *ids[:-1]]]}
        first = 0
    else:
        read, first = {"input_ids": [[*prompt, *ids[:-1]]]}, len(prompt) - 1
    with torch.inference_mode():
        logits_TV = model(**{name: torch.tensor(value, device=device) for name, value in read.items()}).logits[0]
    steps_NV = logits_TV[first:].double().log_softmax(-1)
    return steps_NV.gather(1, torch.tensor(ids, device=device)[:, None])[:, 0].cpu()


def _is_zero(model: Any) -> bool:
    """Whether no LoRA pair of ``model`` adds anything: A or B is zero throughout."""
    pairs: dict[str, list[bool]] = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            key = name.replace("lora_embedding_", "lora_").replace("lora_A", "lora").replace("lora_B", "lora")
            pairs.setdefault(key, []).append(not parameter.any().item())
    return all(any(pair) for pair in pairs.values())
