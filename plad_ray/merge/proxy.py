"""What base weights are learned on: the distilled student's own answers, and the model that averages while it reads them."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from plad_ray.artifacts import Artifact
from plad_ray.config import Averaging, Model
from plad_ray.errors import PladError
from plad_ray.merge.learn import Blend, Proxy
from plad_ray.merge.lora import Adapter
from plad_ray.models.load import load_base, load_tokenizer
from plad_ray.models.policy import Policy
from plad_ray.models.tokens import encode_prompt, encode_response, eos_ids, pad_id
from plad_ray.objectives.sft import Sft
from plad_ray.slices import prompts_by_id
from plad_ray.train.layout import Row
from plad_ray.train.logprobs import ResponseValues


def prepare(
    model: Model,
    policy: Policy,
    ends: tuple[Adapter | None, Adapter],
    part_of: dict[str, int | None],
    how: Averaging,
    rows: list[Row],
    micro_batch: int,
    device: torch.device,
) -> Proxy:
    """The base model of ``policy`` on ``device``, averaging start and distilled (``ends``) in each part."""
    base = load_base(policy, model.dtype, model.load_in_4bit).eval().requires_grad_(False)
    if base.config.is_encoder_decoder:
        raise PladError(
            f"merge.parts learns weights of causal models only, and the student is a {base.config.model_type} model; "
            "average it without parts"
        )
    if not model.load_in_4bit:
        base.to(device)
    assert how.parts is not None
    equal_K = torch.full((how.parts,), how.base_weight, device=device)
    blend = Blend(base, *ends, part_of, equal_K, how.base_weight)
    vocabulary = base.config.get_text_config().vocab_size
    pad = pad_id(load_tokenizer(policy))
    return Proxy(ResponseValues(base, Sft()).eval(), blend, rows, pad, vocabulary, micro_batch)


def read_answers(
    prompts: Artifact,
    responses: Artifact,
    scores: Artifact | None,
    tokenizer: PreTrainedTokenizerBase,
    model: Model,
    top: float,
) -> tuple[list[Row], dict[str, int]]:
    """A training row for each answer, or the share ``top`` of them with the best scores; those left out, by reason.

    Raises PladError when nothing is left.
    """
    answers = responses.table(["rid", "prompt_id", "text", "finish_reason"]).to_pylist()
    kept = [answer for answer in answers if answer["text"].strip()]
    dropped = {"empty": len(answers) - len(kept)}
    if scores is not None:
        best = _best(kept, scores, top)
        dropped["below_top"] = len(kept) - len(best)
        kept = best
    if not kept:
        raise PladError(f"artifact {responses.path}: the distilled student gave no answer to learn base weights from")
    by_id = prompts_by_id(prompts, (answer["prompt_id"] for answer in kept))
    rows = [_row(by_id[answer["prompt_id"]], answer, tokenizer, model) for answer in kept]
    return rows, {reason: count for reason, count in dropped.items() if count}


def _best(answers: list[dict[str, Any]], scores: Artifact, top: float) -> list[dict[str, Any]]:
    """The first ⌈top · n⌉ by score, in the order they came in."""
    found = scores.table(["rid", "score"])
    by_rid = dict(zip(found["rid"].to_pylist(), found["score"].to_pylist(), strict=True))
    order = sorted(range(len(answers)), key=lambda i: -by_rid[answers[i]["rid"]])
    return [answers[i] for i in sorted(order[: ceil(top * len(answers))])]


def _row(prompt: dict[str, Any], answer: dict[str, Any], tokenizer: PreTrainedTokenizerBase, model: Model) -> Row:
    """Truncated text gets no EOS."""
    eos = None if answer["finish_reason"] == "length" else eos_ids(tokenizer, model)[0]
    ids = encode_prompt(tokenizer, prompt, model)
    text = encode_response(tokenizer, answer["text"], eos)[: model.max_length - len(ids)]
    return Row(np.array(ids, np.int32), (np.array(text, np.int32),), (0.0,))
