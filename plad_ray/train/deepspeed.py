"""One DeepSpeed engine: its config file, the optimizer, the few calls that differ between ZeRO stages."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plad_ray.config import Training, TrainRuntime
from plad_ray.errors import PladError

CONFIGS = Path(__file__).parent / "ds_configs"


def config_file(runtime: TrainRuntime, dtype: str) -> Path:
    """The file under ds_configs that ``zero_stage`` and ``offload`` choose. Raises PladError when there is none."""
    if runtime.zero_stage == 0 and dtype == "bfloat16":
        raise PladError("runtime.train.zero_stage 0 keeps no fp32 weights for dtype bfloat16; use stage 1, 2 or 3")
    offload = "" if runtime.offload == "none" else f"_offload_{runtime.offload}"
    file = CONFIGS / f"ds_z{runtime.zero_stage}{offload}_config.json"
    if not file.is_file():
        raise PladError(
            f"runtime.train.offload {runtime.offload} does not go with zero_stage {runtime.zero_stage}: optimizer "
            "needs stage 2 or 3, all needs stage 3"
        )
    return file


def engine_config(training: Training, runtime: TrainRuntime, dtype: str, workers: int, micros: int) -> dict[str, Any]:
    """The DeepSpeed config of a run with ``micros`` micro-batches a step on each of ``workers`` workers."""
    config = json.loads(config_file(runtime, dtype).read_text())
    return config | {
        "train_micro_batch_size_per_gpu": 1,  # bookkeeping only: the loop scales losses by global counts itself
        "gradient_accumulation_steps": micros,
        "train_batch_size": micros * workers,
        # ZeRO 0 hands back the bare optimizer: the loop clips, since DeepSpeed would not tell the norm
        "gradient_clipping": training.max_grad_norm if runtime.zero_stage else 0.0,
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def start_engine(module: nn.Module, training: Training, config: dict[str, Any]) -> Any:
    """``deepspeed.initialize`` with torch's AdamW over the trainable weights (no compiled operators)."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with _hidden("mlflow"):  # its autotuner imports it wherever it is installed: 3 s of every worker's start
        import deepspeed

    _compile_nothing()
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise PladError("no weight of the model is trainable")
    optimizer = torch.optim.AdamW(
        trainable, lr=training.learning_rate, betas=training.betas, weight_decay=training.weight_decay
    )
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, model_parameters=trainable, config=config, dist_init_required=False
    )
    return engine


@contextmanager
def _hidden(module: str) -> Generator[None]:
    """Within, importing ``module`` fails, unless it has been imported before."""
    known = sys.modules.setdefault(module, None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if known is None:
            del sys.modules[module]


def _compile_nothing() -> None:
    """Keep DeepSpeed from building what is never used here: a shared-memory C++ operator (it wants a compiler on the
    machine) and torch.compile's decorators on its Muon optimizer (5 s of imports at every worker's start)."""
    from deepspeed import ops
    from deepspeed.runtime import compiler

    ops.__compatible_ops__ = {}
    compile_decorator = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_decorator


def end_engine(engine: Any) -> None:
    """Let go of the model, which the engine's hooks on its weights would keep for the life of the process. Of ZeRO-3, whose
    caches are nobody's to clear, the shards stay."""
    engine.destroy()


def set_learning_rate(engine: Any, rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def backward(engine: Any, loss: Tensor, last: bool, workers: int) -> None:
    """Add ``loss``'s gradient. DeepSpeed averages over workers; the loss is a share of a global sum, so undo that.

    ``last`` marks the step's last micro-batch, after which gradients are reduced.
    """
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(loss * workers, scale_wrt_gas=False)


def step(engine: Any, training: Training) -> Tensor | float:
    """Clip, update, clear. Returns the gradient's global norm before clipping."""
    norm: Tensor | float | None = None
    if not engine.zero_optimization():
        weights = [p for p in engine.module.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(weights, training.max_grad_norm)
    engine.step()
    return engine.get_global_grad_norm() if norm is None else norm
