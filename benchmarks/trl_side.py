"""TRL's trainers on the same pairs, stopped after every step so that another side's step can be timed in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from benchmarks.clock import Time, now, since
from benchmarks.shape import Shape, base_model, lora, rows


def tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """One word a token, so that text has the lengths that are asked for."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, shape.vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def dataset(shape: Shape, steps: int) -> Dataset:
    """Columns prompt, chosen, rejected; TRL appends the EOS."""
    given = rows(shape, shape.pairs * 4)

    def text(ids: Any) -> str:
        return " " + " ".join(f"w{i}" for i in ids)

    records = [
        {"prompt": text(r.prompt), "chosen": text(r.candidates[0][:-1]), "rejected": text(r.candidates[1][:-1])}
        for r in given
    ]
    return Dataset.from_list((records * steps)[: shape.pairs * steps])


class Clock(TrainerCallback):
    """Times each whole step of the trainer (data, forward, backward, clipping, AdamW); does ``between`` after each."""

    def __init__(self, between: Callable[[], None]):
        self.between = between
        self.times: list[Time] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(since(self.began))
        self.between()
        self.began = now()


def arguments(shape: Shape, steps: int, folder: Path, fused: bool) -> dict[str, Any]:
    """No gradient checkpointing, no evaluation, nothing saved: TRL at its fastest."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": shape.pairs,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "max_length": shape.prompt + shape.answer + 64,
        "gradient_checkpointing": False,
        "bf16": shape.dtype == "bfloat16",
        "use_cpu": shape.device == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10_000,
        "disable_tqdm": True,
        "seed": 0,
        "use_liger_kernel": fused,
    }


def cpo(
    shape: Shape,
    steps: int,
    folder: Path,
    between: Callable[[], None],
    model: PreTrainedModel | None = None,
    fused: bool = False,
) -> Clock:
    """CPOTrainer with SimPO's loss and no NLL term; ``fused``: with Liger's kernels."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    clock = Clock(between)
    args = CPOConfig(loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5, **arguments(shape, steps, folder, fused))
    CPOTrainer(
        model=model or base_model(shape),
        args=args,
        train_dataset=dataset(shape, steps),
        processing_class=tokenizer(shape),
        peft_config=lora(shape),
        callbacks=[clock],
    ).train()
    return clock


def dpo(
    shape: Shape, steps: int, folder: Path, between: Callable[[], None], precompute: bool, fused: bool = False
) -> Clock:
    """DPOTrainer; with ``precompute`` the reference's log-probs are computed before the first step, which is not timed."""
    from trl import DPOConfig, DPOTrainer

    clock = Clock(between)
    args = DPOConfig(precompute_ref_log_probs=precompute, **arguments(shape, steps, folder, fused))
    DPOTrainer(
        model=base_model(shape),
        args=args,
        train_dataset=dataset(shape, steps),
        processing_class=tokenizer(shape),
        peft_config=lora(shape),
        callbacks=[clock],
    ).train()
    return clock
