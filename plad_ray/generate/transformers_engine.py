"""Generation by transformers, for models that vLLM does not serve (GPT-Neo, unusual head sizes on CPU).

Each row draws from its own generator by inverse transform sampling, so what it says does not depend on its batch mates
(up to the rounding of a padded forward pass).
"""

from __future__ import annotations

import inspect
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from plad_ray.errors import PladError
from plad_ray.generate.pools import EnginePool, check_context
from plad_ray.generate.tasks import ANSWER
from plad_ray.models.load import load_base

if TYPE_CHECKING:
    from ray.data import Dataset


def check(pool: EnginePool) -> None:
    """Everything that can be known before a model is loaded. Raises PladError."""
    if pool.runtime.engine_kwargs:
        raise PladError(
            f"runtime.{pool.role}.engine_kwargs {sorted(pool.runtime.engine_kwargs)}: the transformers engine has none"
        )
    config = pool.config()
    if getattr(config, "is_encoder_decoder", False):
        raise PladError(f"{config.model_type} is an encoder-decoder: engine transformers serves causal models only")
    check_context(config, pool.model)


def branch(requests: Dataset, pool: EnginePool) -> Dataset:
    """Requests of one pool to ANSWER rows."""
    from ray.data import ActorPoolStrategy

    runtime = pool.runtime
    return requests.map_batches(
        TransformersEngine,
        fn_constructor_args=(pool,),
        batch_format="pyarrow",
        batch_size=runtime.batch_size,
        compute=ActorPoolStrategy(size=runtime.replicas),
        num_cpus=runtime.cpus,
        num_gpus=runtime.gpus or None,
        accelerator_type=runtime.accelerator_type,
    )


class TransformersEngine:
    """Ray Data actor: the base model with every adapter of the pool beside it."""

    def __init__(self, pool: EnginePool):
        self.pool = pool
        self.device = torch.device("cuda" if pool.runtime.gpus > 0 else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, int(pool.runtime.cpus)))
        model: Any = load_base(pool.base, pool.model.dtype, pool.model.load_in_4bit)
        for name, folder in pool.adapters.items():
            from peft import PeftModel

            if isinstance(model, PeftModel):
                model.load_adapter(folder, adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=name, autocast_adapter_dtype=False)
        self.model = model.eval() if pool.model.load_in_4bit else model.eval().to(self.device)

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = sorted(block.to_pylist(), key=lambda row: row["policy"])
        answers = []
        for policy, group in groupby(rows, key=lambda row: row["policy"]):
            answers += self._answer(policy, list(group))
        return pa.Table.from_pylist(answers, schema=ANSWER)

    def _answer(self, policy: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """ANSWER rows of one policy's requests; a batch that does not fit the GPU fails as error rows."""
        generate = self.pool.generate
        try:
            with _adapter(self.model, policy if policy in self.pool.adapters else None, bool(self.pool.adapters)):
                drawn = sample(
                    self.model,
                    [row["prompt_token_ids"] for row in rows],
                    [row["temperature"] for row in rows],
                    [row["seed"] for row in rows],
                    generate.max_tokens,
                    self.pool.eos(policy),
                    generate.top_p,
                    generate.top_k,
                )
        except torch.OutOfMemoryError as error:
            return [{**row, "error": f"OutOfMemoryError: {error}"} for row in rows]
        pairs = zip(rows, drawn, strict=True)
        return [{**row, "ids": ids, "logprobs": logps if row["verify"] else None} for row, (ids, logps) in pairs]


class _adapter:  # noqa: N801 - reads as a with-statement's verb
    """Switch ``model`` to one adapter, or to the bare base."""

    def __init__(self, model: Any, name: str | None, peft: bool):
        self.model, self.name, self.off = model, name, None
        if peft and name is None:
            self.off = model.disable_adapter()

    def __enter__(self) -> None:
        if self.off is not None:
            self.off.__enter__()
        elif self.name is not None:
            self.model.set_adapter(self.name)

    def __exit__(self, *error: Any) -> None:
        if self.off is not None:
            self.off.__exit__(*error)


@torch.inference_mode()
def sample(
    model: Any,
    prompts: list[list[int]],
    temperatures: list[float],
    seeds: list[int],
    max_tokens: int,
    eos: tuple[int, ...],
    top_p: float = 1.0,
    top_k: int = 0,
) -> list[tuple[list[int], list[float]]]:
    """Generated ids (with the EOS that ended them) and the raw log-prob of each, for B prompts at once.

    Prompts are padded on the left; the mask comes from their lengths.
    """
    device = next(model.parameters()).device
    longest, B = max(map(len, prompts)), len(prompts)
    ids_BT = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = "position_ids" in inspect.signature(_inner(model).forward).parameters
    uniform_BN = torch.stack([_uniform(seed, max_tokens) for seed in seeds]).to(device)
    temperature_B = torch.tensor(temperatures, dtype=torch.float64, device=device)
    eos_E = torch.tensor(eos, device=device)
    done_B = torch.zeros(B, dtype=torch.bool, device=device)
    tokens, logps, cache = [], [], None
    for step in range(max_tokens):
        extra = {"position_ids": (mask_BT.cumsum(1) - 1).clamp_min(0)[:, -ids_BT.shape[1] :]} if positions else {}
        out = model(input_ids=ids_BT, attention_mask=mask_BT, past_key_values=cache, use_cache=True, **extra)
        cache = out.past_key_values
        logits_BV = out.logits[:, -1].double()
        token_B = draw(logits_BV, temperature_B, uniform_BN[:, step], top_p, top_k)
        tokens.append(token_B)
        logps.append(logits_BV.log_softmax(-1).gather(1, token_B[:, None])[:, 0])
        done_B |= torch.isin(token_B, eos_E)
        if done_B.all():
            break
        ids_BT = token_B[:, None]
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
    tokens_BN, logps_BN = torch.stack(tokens, 1).tolist(), torch.stack(logps, 1).tolist()
    return [_until_eos(t, p, eos) for t, p in zip(tokens_BN, logps_BN, strict=True)]


def draw(
    logits_BV: torch.Tensor, temperature_B: torch.Tensor, uniform_B: torch.Tensor, top_p: float, top_k: int
) -> torch.Tensor:
    """One token a row: the most likely one at temperature 0, else by inverse transform with ``uniform_B`` in [0, 1)."""
    greedy_B = logits_BV.argmax(-1)
    scaled_BV = logits_BV / temperature_B.clamp_min(1e-6)[:, None]
    sorted_BV, order_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    probs_BV = sorted_BV.softmax(-1)
    if 0 < top_k < probs_BV.shape[1]:
        probs_BV[:, top_k:] = 0
        probs_BV /= probs_BV.sum(-1, keepdim=True)
    if top_p < 1:  # the smallest set of most likely tokens whose probability reaches top_p
        probs_BV[probs_BV.cumsum(-1) - probs_BV >= top_p] = 0
        probs_BV /= probs_BV.sum(-1, keepdim=True)
    reached_BV = probs_BV.cumsum(-1)
    place_B = (reached_BV <= uniform_B[:, None] * reached_BV[:, -1:]).sum(-1)
    last_B = (probs_BV > 0).sum(-1) - 1
    sampled_B = order_BV.gather(1, torch.minimum(place_B, last_B)[:, None])[:, 0]
    return torch.where(temperature_B == 0, greedy_B, sampled_B)


def _uniform(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _until_eos(tokens: list[int], logps: list[float], eos: tuple[int, ...]) -> tuple[list[int], list[float]]:
    end = next((at + 1 for at, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[:end], logps[:end]


def _inner(model: Any) -> Any:
    """The transformers model inside a PeftModel."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
