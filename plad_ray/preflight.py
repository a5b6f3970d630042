"""Everything that can be known to fail, before any compute starts: one clear message each."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plad_ray.artifacts import Store
from plad_ray.config import Experiment, Model, Role
from plad_ray.errors import PladError
from plad_ray.placement import Node, asked_by, fits
from plad_ray.stages import Stage
from plad_ray.track.choose import check as check_trackers


def open_store(exp: Experiment) -> Store:
    """The store of ``exp``, after one small write to it."""
    where = f"runtime.store {exp.runtime.store}"
    try:
        store = Store(exp.runtime.store)
        probe = f".writable-{uuid.uuid4().hex[:8]}"
        store.write_bytes(probe, b"")
        store.delete(probe)
    except OSError as error:
        raise PladError(f"{where}: not writable ({error}); give a folder or bucket that can be written") from None
    except ValueError as error:  # pyarrow: unknown scheme
        raise PladError(f"{where}: no file system for it ({error}); give a folder, s3://… or gs://…") from None
    return store


def check(exp: Experiment, todo: list[Stage]) -> None:
    """Check what the stages ``todo`` will use; a finished stage's models are not looked at again."""
    if any("training" in stage.config for stage in todo):
        check_trackers(exp.runtime.track)
    if exp.scorer is not None and any(isinstance(s.config.get("scorer"), dict) for s in todo):
        from plad_ray.reward import check as check_scorer

        check_scorer(exp.scorer)
    roles = {name: role for name in ("teacher", "student") if (role := getattr(exp, name)) and _used(name, todo)}
    for name, role in roles.items():
        _in(name, check_role, exp, name, role)
    if exp.teacher is not None and "student" in roles:
        check_same(exp, exp.teacher)
    check_references(exp, todo)
    if exp.teacher is not None and any("teacher" in s.config.get("frozen", {}) for s in todo):
        check_logits(exp.teacher.model, exp.student.model)


def check_role(exp: Experiment, name: str, role: Role) -> None:
    """Model files, tokenizer, lengths, and what the engine of ``role`` can serve."""
    from plad_ray.models.load import config_of, is_seq2seq
    from plad_ray.models.policy import check_model_files

    model = role.model
    if model.api is not None:
        from plad_ray.generate import openai_engine

        openai_engine.check(_pool(exp, name, role))
        return
    check_four_bit(exp, name, model)
    if model.path is not None and (folder := Path(model.path).expanduser()).is_dir():
        check_model_files(f"model.path {folder}", [p.name for p in folder.iterdir()])
    config = config_of(model)
    if exp.runtime.train.fused_kernels and (name == "student" or role.sft is not None):
        from plad_ray.train import kernels

        kernels.check(config.model_type)
    check_lengths(exp, model, is_seq2seq(config))
    if model.path is not None:
        check_tokenizer(exp, model)
    _check_engine(exp, name, role, config)


def check_lengths(exp: Experiment, model: Model, seq2seq: bool = False) -> None:
    """Room for at least one prompt token beside the longest response; each side of an encoder-decoder has its own room."""
    if seq2seq:
        for key, tokens in (
            ("generate.max_tokens", exp.generate.max_tokens),
            ("model.max_prompt_tokens", model.max_prompt_tokens),
        ):
            if tokens is not None and tokens > model.max_length:
                raise PladError(
                    f"{key} {tokens} exceeds model.max_length {model.max_length}, the most that either side of an "
                    "encoder-decoder holds; lower the first or raise the second"
                )
        return
    if exp.generate.max_tokens >= model.max_length:
        raise PladError(
            f"generate.max_tokens {exp.generate.max_tokens} leaves no room for a prompt within model.max_length "
            f"{model.max_length}; lower the first or raise the second"
        )
    if model.max_prompt_tokens is not None and model.max_prompt_tokens >= model.max_length:
        raise PladError(
            f"model.max_prompt_tokens {model.max_prompt_tokens} leaves no room for a response within model.max_length "
            f"{model.max_length}"
        )


def check_four_bit(exp: Experiment, name: str, model: Model) -> None:
    """A 4-bit base needs bitsandbytes and GPUs, for its engine and (the student's) for training."""
    if not model.load_in_4bit:
        return
    if find_spec("bitsandbytes") is None:
        raise PladError("model.load_in_4bit needs the bitsandbytes package, which is not installed; use bfloat16")
    if getattr(exp.runtime, name).gpus == 0 or (name == "student" and exp.runtime.train.gpus_per_worker == 0):
        raise PladError(
            f"model.load_in_4bit needs GPUs: set runtime.{name}.gpus and runtime.train.gpus_per_worker, or use bfloat16"
        )


def check_tokenizer(exp: Experiment, model: Model) -> None:
    """The tokenizer loads, knows what ends a response, and has a chat template when one is asked for."""
    from plad_ray.models.load import load_tokenizer
    from plad_ray.models.policy import resolve
    from plad_ray.models.tokens import eos_ids

    tokenizer = load_tokenizer(resolve(model))
    eos_ids(tokenizer, model)
    if model.template == "chat" and not tokenizer.chat_template:
        raise PladError(
            f"model.template is chat, but the tokenizer of {model.path} has no chat template; use template: plain, or "
            "an instruction-tuned model"
        )


def check_same(exp: Experiment, teacher: Role) -> None:
    """Teacher and student must differ in weights, not only in how they are spelt."""
    from plad_ray.models.policy import identity

    if teacher.sft == exp.student.sft and identity(teacher.model) == identity(exp.student.model):
        raise PladError(
            f"teacher and student are the same model ({teacher.model.path or 'from scratch'}) with the same SFT: every "
            "pair would be noise; give the student another model or another sft"
        )


def check_references(exp: Experiment, todo: list[Stage]) -> None:
    """What trains on human texts has some."""
    if exp.data.source != "files" or exp.data.columns.reference is not None:
        return
    from plad_ray.train.worker import objective_of, sections

    for stage in todo:
        if "training" not in stage.config:
            continue
        objective = objective_of(sections(stage.config)[1])
        if objective.trains_on == "references" and objective.reads_texts:
            raise PladError(
                f"{stage.name} trains on the references of the prompts, and data.columns.reference is null: name the "
                "column, or use a method that needs none"
            )


def check_logits(teacher: Model, student: Model) -> None:
    """The teacher's logits are of the student's tokens, over all that the student trains on."""
    from plad_ray.generate.pools import check_context
    from plad_ray.models.load import config_of, is_seq2seq, load_tokenizer
    from plad_ray.models.policy import resolve
    from plad_ray.models.tokens import check_same_sequences, check_same_tokens, text_only

    check_same_sequences(is_seq2seq(config_of(student)), is_seq2seq(config_of(teacher)), "teacher")
    if teacher.path is not None and student.path is not None:
        check_same_tokens(load_tokenizer(resolve(student)), load_tokenizer(resolve(teacher)), "teacher")
    elif _made(teacher) != _made(student):
        raise PladError(
            "teacher and student have different tokenizers, so their logits cannot be compared: make both from scratch "
            "with the same scratch.tokenizer and scratch.vocab_size, or take both from models with one tokenizer. Methods "
            f"that need the teacher's text alone work: {', '.join(text_only())}"
        )
    at_students_length = teacher.model_copy(update={"max_length": student.max_length})
    _in("the teacher reads what the student trains on", check_context, config_of(teacher), at_students_length)


def _made(model: Model) -> tuple[str, int] | None:
    """The settings of a tokenizer that is made from the train shard; None for a model that brings its own."""
    return None if model.scratch is None else (model.scratch.tokenizer, model.scratch.vocab_size)


def check_resources(exp: Experiment, todo: list[Stage], nodes: list[Node]) -> None:
    """``nodes``, the most that the cluster may have, have room for what the stages have up. Engines without GPUs start as
    there is room, so they are Ray's business."""
    for fit in fits(nodes, asked_by(exp, todo)):
        if fit.missing and (fit.actor.gpus or fit.stage == "training"):
            raise PladError(
                f"{fit.stage}: {fit.missing} of {fit.wanted} × {fit.actor} of {fit.actor.key} have no place on the Ray "
                f"cluster: {fit.why}; lower {fit.actor.key}, or point runtime.ray_address at a larger cluster"
            )


def _used(role: str, todo: list[Stage]) -> bool:
    """Whether a stage to run loads the role's model."""
    return any(
        any(p["role"] == role for p in s.config.get("policies", {}).values())
        or s.name == f"sft-{role}"
        or (role == "student" and s.config.get("kind") == "distill")
        for s in todo
    )


def _check_engine(exp: Experiment, name: str, role: Role, config: Any) -> None:
    from plad_ray.generate import vllm_engine
    from plad_ray.generate.pools import check_context
    from plad_ray.models.policy import adapter_folder

    check_context(config, role.model)
    if role.engine != "vllm":
        return
    pool = _pool(exp, name, role)
    vllm_engine.check_engine_kwargs(pool)
    vllm_engine.check_architecture(config)
    if pool.runtime.gpus == 0:
        vllm_engine.check_vllm_cpu_head_size(config)
    trained = [c for _, d in exp.arms().values() for c in d.with_candidates()] if name == "student" else []
    ranks = [section.lora.r for section in (role.sft, *trained) if section is not None and section.method == "lora"]
    if role.model.adapter is not None or ranks:
        vllm_engine.check_takes_lora(config)
    if role.model.adapter is not None:
        vllm_engine.check_adapter(str(adapter_folder(role.model.adapter)))
    for rank in ranks:
        vllm_engine.check_lora_rank(rank)


def _pool(exp: Experiment, name: str, role: Role) -> Any:
    from plad_ray.generate.pools import EnginePool

    return EnginePool(name, name, role.engine, role.model, getattr(exp.runtime, name), exp.generate)


def _in(role: str, function: Callable[..., None], *arguments: Any) -> None:
    """Say which role a message is about."""
    try:
        function(*arguments)
    except PladError as error:
        raise PladError(f"{role}: {error}") from None
