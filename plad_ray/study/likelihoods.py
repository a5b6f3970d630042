"""How likely several students find the same texts: log P(y|x) of every response under each reader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from plad_ray.artifacts import Artifact
from plad_ray.config import Evaluate, Experiment, Model
from plad_ray.errors import PladError
from plad_ray.evaluate.frame import prompts_of
from plad_ray.models.load import is_seq2seq, load_config, load_model, load_tokenizer
from plad_ray.models.policy import Policy, resolve
from plad_ray.models.tokens import encode_prompt, encode_response, eos_ids, pad_id
from plad_ray.objectives.sft import Sft
from plad_ray.parts.common import lazy, model_identity, present
from plad_ray.stages import Job, Outcome, Stage
from plad_ray.train.layout import Row, concatenate
from plad_ray.train.logprobs import ResponseValues, chunk_count

#: one row a (text, reader), a reference going by its prompt's id; ``logp`` is a sum over ``tokens`` tokens, EOS included
#: where the text ended
ROW = pa.schema([("rid", pa.string()), ("reader", pa.string()), ("logp", pa.float64()), ("tokens", pa.int32())])


def stage(exp: Experiment, prompts: Stage, responses: Stage | None, readers: dict[str, tuple[Stage, ...]]) -> Stage:
    """``readers``: by name, the stages that fold onto the student's model, oldest first. Without ``responses`` the
    references of the evaluated prompts are read."""
    model = exp.student.model
    config: dict[str, Any] = {"model": model.model_dump(mode="json"), "readers": list(readers)}
    inputs = {f"{name}/{i}": s for name, stages in readers.items() for i, s in enumerate(stages)}
    if responses is None:
        config["evaluate"] = exp.evaluate.model_dump(mode="json", include={"split", "limit"})
    identity = {**config, "model": model_identity(model)}
    inputs |= present({"prompts": prompts, "responses": responses})
    return Stage("likelihoods", lazy("plad_ray.study.likelihoods"), config, inputs, identity, cpus=1, ray=False)


def run(job: Job) -> Outcome:
    """Stage: ``ROW`` rows of every text of ``responses`` under each reader; empty texts are dropped."""
    model = Model.model_validate(job.config["model"])
    texts = _texts(job)
    prompts = {row["prompt_id"]: row for row in job.inputs["prompts"].rows(["prompt_id", "prompt", "messages"])}
    readers = job.config["readers"]
    total, parts = len(texts) * len(readers), []
    for number, name in enumerate(readers):
        policy = resolve(model, *job.numbered(name))
        rows = rows_of(texts, prompts, policy, model)
        parts.append(read(policy, model, rows, name, job.runtime.train.micro_batch))
        job.progress((number + 1) * len(texts), total, "texts")
    found = pa.concat_tables(parts)
    job.out.store.delete(job.out.file("rows"))
    job.out.write_rows(found)
    left = total - found.num_rows
    return Outcome(total, found.num_rows, {"empty": left} if left else {})


def per_token(likelihoods: Artifact) -> dict[str, dict[str, float]]:
    """log P(y|x)/|y| of each text, by reader and rid."""
    found: dict[str, dict[str, float]] = {}
    for row in likelihoods.rows():
        found.setdefault(row["reader"], {})[row["rid"]] = row["logp"] / row["tokens"]
    return found


def _texts(job: Job) -> list[dict[str, Any]]:
    if "responses" in job.inputs:
        return job.inputs["responses"].table(["rid", "prompt_id", "text", "finish_reason"]).to_pylist()
    prompts = prompts_of(job.inputs["prompts"], Evaluate.model_validate(job.config["evaluate"])).to_pylist()
    found = [
        {"rid": row["prompt_id"], "prompt_id": row["prompt_id"], "text": row["reference"], "finish_reason": "stop"}
        for row in prompts
        if row["reference"] is not None
    ]
    if not found:
        raise PladError(f"{job.stage}: no prompt of {job.inputs['prompts'].path} has a reference to be read")
    return found


def rows_of(
    texts: list[dict[str, Any]], prompts: dict[str, dict[str, Any]], policy: Policy, model: Model
) -> dict[str, Row]:
    """By rid, prompt and text as tokens of the reader; truncated text gets no EOS."""
    tokenizer = load_tokenizer(policy)
    eos = eos_ids(tokenizer, model)[0]
    found = {}
    for text in texts:
        ids = encode_prompt(tokenizer, prompts[text["prompt_id"]], model)
        ended = eos if text["finish_reason"] != "length" else None
        response = encode_response(tokenizer, text["text"], ended)[: model.max_length - len(ids)]
        if text["text"].strip() and response:
            found[text["rid"]] = Row(np.array(ids, np.int32), (np.array(response, np.int32),), (0.0,))
    return found


@torch.no_grad()
def read(policy: Policy, model: Model, rows: dict[str, Row], reader: str, micro_batch: int) -> pa.Table:
    """Log-probs of ``rows`` under ``policy``, on a GPU where there is one."""
    if is_seq2seq(load_config(policy)):
        raise PladError("likelihoods are read of causal models only, and the student is an encoder-decoder")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded: Any = load_model(policy, model.dtype, model.load_in_4bit)
    if not model.load_in_4bit:
        loaded.to(device)
    values = ResponseValues(loaded, Sft()).eval()
    vocabulary, pad = loaded.config.get_text_config().vocab_size, pad_id(load_tokenizer(policy))
    ordered = sorted(rows, key=lambda rid: rows[rid].tokens)
    logps: list[float] = []
    for first in range(0, len(ordered), micro_batch):
        batch = [rows[rid] for rid in ordered[first : first + micro_batch]]
        chunks = chunk_count(sum(row.positions for row in batch), vocabulary, device)
        logps += values(concatenate(batch, pad, chunks).to(device))["logp"].double().sum((1, 2)).tolist()
    columns = {
        "rid": ordered,
        "reader": [reader] * len(ordered),
        "logp": logps,
        "tokens": [rows[rid].positions for rid in ordered],
    }
    return pa.table(columns, schema=ROW)
