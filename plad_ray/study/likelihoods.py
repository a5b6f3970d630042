"""How likely several students find the same texts: log P(y|x) of every response under each reader."""

from __future__ import annotations

from collections.abc import Iterator
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
from plad_ray.slices import prompts_by_id
from plad_ray.stages import Job, Outcome, Stage
from plad_ray.tasks import at_workers, device_of
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
    config["at_workers"] = True
    train = exp.runtime.train
    return Stage(
        "likelihoods",
        lazy("plad_ray.study.likelihoods"),
        config,
        inputs,
        identity,
        cpus=train.workers * train.cpus_per_worker,
        gpus=train.workers * train.gpus_per_worker,
    )


def run(job: Job) -> Outcome:
    """Stage: ``ROW`` rows of every text of ``responses`` under each reader, by reader and rid; empty texts are dropped.
    Each training worker's place reads a share of the texts."""
    shares = at_workers(job, read_share, job.runtime.train.workers)
    found = pa.concat_tables(rows for rows, _ in shares).sort_by([("reader", "ascending"), ("rid", "ascending")])
    total = sum(asked for _, asked in shares)
    job.out.store.delete(job.out.file("rows"))
    job.out.write_rows(found)
    left = total - found.num_rows
    return Outcome(total, found.num_rows, {"empty": left} if left else {})


def read_share(job: Job, number: int) -> tuple[pa.Table, int]:
    """``ROW`` rows of one of ``runtime.train.workers`` shares of the texts, and how many there were to be: the texts of the
    share times the readers. Progress is the first share's, as if the others were as far."""
    workers, micro_batch = job.runtime.train.workers, job.runtime.train.micro_batch
    model = Model.model_validate(job.config["model"])
    texts = _texts(job)[number::workers]
    readers = job.config["readers"] if texts else []
    prompts = prompts_by_id(job.inputs["prompts"], (text["prompt_id"] for text in texts))
    found, done, total = [ROW.empty_table()], 0, len(texts) * len(readers)
    for name in readers:
        policy = resolve(model, *job.numbered(name))
        rows = rows_of(texts, prompts, policy, model)
        for batch in read(policy, model, rows, name, micro_batch, device_of(job.runtime)):
            found.append(batch)
            done += batch.num_rows
            if number == 0:
                job.progress(done * workers, total * workers, "texts")
    return pa.concat_tables(found), total


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
def read(
    policy: Policy, model: Model, rows: dict[str, Row], reader: str, micro_batch: int, device: torch.device
) -> Iterator[pa.Table]:
    """``ROW`` rows of ``rows`` under ``policy``, the shortest first, ``micro_batch`` at a time."""
    if is_seq2seq(load_config(policy)):
        raise PladError("likelihoods are read of causal models only, and the student is an encoder-decoder")
    loaded: Any = load_model(policy, model.dtype, model.load_in_4bit)
    if not model.load_in_4bit:
        loaded.to(device)
    values = ResponseValues(loaded, Sft()).eval()
    vocabulary, pad = loaded.config.get_text_config().vocab_size, pad_id(load_tokenizer(policy))
    ordered = sorted(rows, key=lambda rid: rows[rid].tokens)
    for first in range(0, len(ordered), micro_batch):
        rids = ordered[first : first + micro_batch]
        batch = [rows[rid] for rid in rids]
        chunks = chunk_count(sum(row.positions for row in batch), vocabulary, device)
        logps = values(concatenate(batch, pad, chunks).to(device))["logp"].double().sum((1, 2)).tolist()
        columns = {"rid": rids, "reader": [reader] * len(rids), "logp": logps, "tokens": [r.positions for r in batch]}
        yield pa.table(columns, schema=ROW)
