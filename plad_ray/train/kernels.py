"""Fused GPU kernels for what lies between the matrix products, by Liger (arXiv 2410.10989): norms, rotary embeddings, gated
feed-forwards. Each reads and writes its tensors once, where PyTorch does so with every operation."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from plad_ray.errors import PladError

#: The losses are ours: only response positions reach the LM head.
WITHOUT = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def check(model_type: str) -> None:
    """Raise PladError without the package, or where it has nothing for models of that type."""
    if not is_liger_kernel_available():
        raise PladError(
            "runtime.train.fused_kernels needs the package liger-kernel where training runs; the extra gpu has it"
        )
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise PladError(f"runtime.train.fused_kernels: Liger has none for {model_type} models; leave it off")


@contextmanager
def fused(models: Sequence[PreTrainedModel]) -> Generator[None]:
    """Within, ``models`` (on a GPU) run Liger's kernels. Raises as ``check`` does."""
    for model in models:
        check(model.config.model_type)
    files = [vars(sys.modules[type(model).__module__]) for model in models]
    own = [dict(names) for names in files]  # Liger puts some of its functions into the file of the architecture
    try:
        for model in models:
            apply_liger_kernel(model, WITHOUT)
        yield
    finally:
        for names, before in zip(files, own, strict=True):
            names.update(before)
