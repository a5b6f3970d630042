"""How likely several students find the same texts: log P(y|x) of every response under each reader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from plad_ray.artifacts import Artifact
from plad_ray.config import Experiment, Model
from plad_ray.errors import PladError
from plad_ray.models.load import is_seq2seq, load_config, load_model, load_tokenizer
from plad_ray.models.policy import Policy, resolve
from plad_ray.models.tokens import encode_prompt, encode_response, eos_ids, pad_id
from plad_ray.objectives.sft import Sft
from plad_ray.parts.common import lazy, model_identity
from plad_ray.stages import Job, Outcome, Stage
from plad_ray.train.layout import Row, concatenate
from plad_ray.train.logprobs import ResponseValues, chunk_count

#: one row a (response, reader); ``logp`` is a sum over ``tokens`` tokens, EOS included where the text ended
ROW = pa.schema([("rid", pa.string()), ("reader", pa.string()), ("logp", pa.float64()), ("tokens", pa.int32())])


def stage(exp: Experiment, prompts: Stage, responses: Stage, readers: dict[str, tuple[Stage, ...]]) -> Stage:
    """``readers``: by name, the stages that fold onto the student's model, oldest first."""
    model = exp.student.model
    config = {"model": model.model_dump(mode="json"), "readers": list(readers)}
    inputs = {f"{name}/{i}": s for name, stages in readers.items() for i, s in enumerate(stages)}
    identity = {**config, "model": model_identity(model)}
    inputs = {"prompts": prompts, "responses": responses, **inputs}
    return Stage("likelihoods", lazy("plad_ray.study.likelihoods"), config, inputs, identity, cpus=1, ray=False)


def run(job: Job) -> Outcome:
    """Stage: ``ROW`` rows of every text of ``responses`` under each reader; empty texts are dropped."""
    model = Model.model_validate(job.config["model"])
    texts = job.inputs["responses"].table(["rid", "prompt_id", "text", "finish_reason"]).to_pylist()
    prompts = {row["prompt_id"]: row for row in job.inputs["prompts"].rows(["prompt_id", "prompt", "messages"])}
    readers = job.config["readers"]
    total, parts = len(texts) * len(readers), []
    for number, name in enumerate(readers):
        policy = resolve(model, *_stages(job, name))
        rows = rows_of(texts, prompts, policy, model)
        parts.append(read(policy, model, rows, name, job.runtime.train.micro_batch))
        job.progress((number + 1) * len(texts), total, "texts")
    found = pa.concat_tables(parts)
    job.out.store.delete(job.out.file("rows"))
    job.out.write_rows(found)
    left = total - found.num_rows
    return Outcome(total, found.num_rows, {"empty": left} if left else {})


def _stages(job: Job, name: str) -> list[Artifact]:
    keys = sorted((k for k in job.inputs if k.rpartition("/")[0] == name), key=lambda k: int(k.rpartition("/")[2]))
    return [job.inputs[key] for key in keys]


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
        raise PladError("study calibration reads causal models only, and the student is an encoder-decoder")
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
        chunks = chunk_count(sum(row.positions for row in batch), vocabulary)
        logps += values(concatenate(batch, pad, chunks).to(device))["logp"].double().sum((1, 2)).tolist()
    columns = {
        "rid": ordered,
        "reader": [reader] * len(ordered),
        "logp": logps,
        "tokens": [rows[rid].positions for rid in ordered],
    }
    return pa.table(columns, schema=ROW)
