"""Which policies one pool of engine actors serves: those on the same base, with the same engine, of the same role."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from plad_ray.artifacts import Artifact
from plad_ray.config import ApiRuntime, Generate, Model, Pool
from plad_ray.errors import PladError
from plad_ray.logs import Source
from plad_ray.models.load import is_seq2seq, load_config, load_tokenizer
from plad_ray.models.policy import Policy, resolve
from plad_ray.models.tokens import eos_ids
from plad_ray.stages import Job


@dataclass(frozen=True)
class EnginePool:
    """One base model behind one engine, and the policies (``policies[name].adapter``) that share it. Picklable."""

    name: str
    role: str
    engine: str
    model: Model
    runtime: Pool
    generate: Generate
    policies: dict[str, Policy] = field(default_factory=dict)
    out: Artifact | None = None  # of the stage: an engine may publish what it has finished itself
    tries: int = 1  # of a block whose engine dies
    alone: bool = False  # one block at a time, and no other beside it
    metrics: bool = False  # vLLM's own, served by Ray
    source: Source | None = None  # of what its engines log

    @property
    def base(self) -> Policy:
        return next(iter(self.policies.values()))

    @property
    def adapters(self) -> dict[str, str]:
        """Adapter folder by the name of the policy that has one."""
        return {name: policy.adapter for name, policy in self.policies.items() if policy.adapter is not None}

    def fetch(self) -> None:
        """Make the weights be there on this machine."""
        for policy in self.policies.values():
            policy.fetch()

    def tokenizer(self, policy: str) -> PreTrainedTokenizerBase:
        """The policy's tokenizer, loaded once a process."""
        return _tokenizer(self.policies[policy])

    def eos(self, policy: str) -> tuple[int, ...]:
        """Ids that end a response of ``policy``."""
        return self._eos[policy]

    @cached_property  # asked for every response, and a token's name is looked up in the whole vocabulary
    def _eos(self) -> dict[str, tuple[int, ...]]:
        return {name: eos_ids(self.tokenizer(name), self.model) for name in self.policies}

    @property
    def api(self) -> ApiRuntime:
        """How the endpoint of a model behind an API is called."""
        return self.runtime.api or ApiRuntime()

    @property
    def rows_per_block(self) -> int:
        """Requests of one block, which is one task of the engine."""
        small = self.model.api is not None
        return min(self.runtime.batch_size, self.api.concurrency) if small else self.runtime.batch_size

    def config(self) -> PretrainedConfig:
        """The base model's transformers config."""
        return load_config(self.base)

    @cached_property
    def seq2seq(self) -> bool:
        """Whether the base is an encoder-decoder."""
        return is_seq2seq(self.config())


_tokenizer = lru_cache(maxsize=64)(load_tokenizer)


def build_pools(job: Job) -> list[EnginePool]:
    """The pools of a generate stage, from its config and its model and adapter artifacts.

    Raises PladError when a policy cannot be resolved.
    """
    generate = Generate.model_validate(job.config["generate"])
    pools: dict[str, EnginePool] = {}
    for name, spec in job.config["policies"].items():
        model = Model.model_validate(spec["model"])
        keys = sorted((k for k in job.inputs if k.startswith(f"{name}/")), key=lambda k: int(k.rpartition("/")[2]))
        policy = resolve(model, *(job.inputs[key] for key in keys))
        shared = model.model_dump(mode="json", exclude={"path", "adapter", "scratch"})
        identity = json.dumps([spec["role"], spec["engine"], policy.base, policy.revision, shared], sort_keys=True)
        if identity not in pools:
            runtime: Pool = getattr(job.runtime, spec["role"])
            label = f"{spec['role']}-{len(pools)}"
            pools[identity] = EnginePool(
                label,
                spec["role"],
                spec["engine"],
                model,
                runtime,
                generate,
                out=job.out,
                tries=job.runtime.engine_tries,
                metrics=job.runtime.engine_metrics,
                source=job.source,
            )
        pools[identity].policies[name] = policy
    return list(pools.values())


def check_context(config: PretrainedConfig, model: Model) -> None:
    """PladError when ``model.max_length`` exceeds what the positions of the architecture reach."""
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    reach = getattr(text_config, "max_position_embeddings", None)
    if reach is not None and model.max_length > reach:
        raise PladError(
            f"model.max_length {model.max_length} exceeds the {reach} positions of {config.model_type} at "
            f"{model.path or 'the model made from scratch'}; set model.max_length to at most {reach}"
        )


def adapter_config(folder: str) -> dict[str, Any]:
    """The PEFT config of an adapter folder."""
    return json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
