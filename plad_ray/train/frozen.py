"""Models that an objective reads and never trains: the teacher, the student as it was, DPO models.

Those on the student's own base are further adapters beside the one that is trained; others are modules of their own.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from plad_ray.config import Model
from plad_ray.errors import PladError
from plad_ray.models.load import load_model
from plad_ray.models.policy import Policy
from plad_ray.train.forward import causal_model

#: PEFT's name of the adapter that is trained.
TRAINED = "default"


@dataclass
class FrozenModels:
    """``adapters``: by model name, the adapter on the student's base (None: the bare base). ``own``: whole modules."""

    adapters: dict[str, str | None] = field(default_factory=dict)
    own: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*self.adapters, *self.own]

    @contextmanager
    def view(self, name: str, student: nn.Module) -> Generator[nn.Module]:
        """The frozen model ``name``, to be called inside."""
        if name in self.own:
            yield self.own[name]
        else:
            with speaking(student, self.adapters[name]):
                yield student


def load_frozen(student: nn.Module, base: Policy | None, policies: dict[str, tuple[Policy, Model]]) -> FrozenModels:
    """Load each of ``policies``; one on the student's base is put beside the trained adapter where there is one."""
    frozen = FrozenModels()
    for name, (policy, model) in policies.items():
        if base is not None and isinstance(student, PeftModel) and policy.base_hash == base.base_hash:
            frozen.adapters[name] = None if policy.adapter is None else name
            if policy.adapter is not None:
                student.load_adapter(policy.adapter, adapter_name=name, is_trainable=False)
        else:
            frozen.own[name] = load_model(policy, model.dtype, model.load_in_4bit).requires_grad_(False)
    if isinstance(student, PeftModel) and frozen.adapters:
        student.set_adapter(TRAINED)
        if isinstance(causal_model(student).get_output_embeddings(), BaseTunerLayer):
            raise PladError(
                "lora.target_modules includes the LM head, which frozen models on the same base cannot share; leave it out"
            )
    return frozen


@contextmanager
def speaking(student: nn.Module, adapter: str | None = TRAINED) -> Generator[None]:
    """``student`` in evaluation mode with one of its adapters (None: the bare base), as it was afterwards.

    PEFT's own switches also change ``requires_grad``, which DeepSpeed has taken note of.
    """
    training = student.training
    layers = [m for m in student.modules() if isinstance(m, BaseTunerLayer)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    student.eval()
    for layer in layers:
        layer._disable_adapters = adapter is None
        layer._active_adapter = [adapter or TRAINED]
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled
        student.train(training)
