"""Score every response, and the references beside them, by a Ray Data actor pool."""

from __future__ import annotations

import sys
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray

from plad_ray import logs
from plad_ray.artifacts import Artifact
from plad_ray.config import Runtime, Scorer
from plad_ray.errors import PladError
from plad_ray.pairs.columns import flat
from plad_ray.placement import scorers
from plad_ray.records import SCORE
from plad_ray.reward import base
from plad_ray.slices import slices
from plad_ray.stages import Job, Outcome

REFERENCE = "reference"
KEYS = [name for name in SCORE.names if name != "score"]
#: What a scorer is given: a text, and what it answers and is compared with.
TEXT = pa.schema(
    [*(SCORE.field(name) for name in KEYS), *((name, pa.string()) for name in ("text", "prompt", "reference"))]
)
FOLDER = "work/texts"
BATCH_ROWS = 1024
PART_ROWS = 50_000


def run(job: Job) -> Outcome:
    """Stage: SCORE rows for every response of the inputs beside ``prompts``, and for the references of their splits
    (not by a scorer that compares with those)."""
    scorer = Scorer.model_validate(job.config["scorer"])
    base.check(scorer)
    splits, rows_in, dialogue = write_texts(job, base.scores_references(scorer))
    texts = ray.data.read_parquet(f"{job.out.path}/{FOLDER}", filesystem=job.out.store.fs)
    scored = texts.map_batches(
        ScoreBatches,
        fn_constructor_args=(job.config["scorer"], dialogue, sys.path, job.source),
        batch_format="pyarrow",
        batch_size=BATCH_ROWS,
        **_actors(scorer, job.runtime),
    )
    job.out.store.delete(job.out.file("rows"))
    rows_out = _collect(job, scored, rows_in)
    return Outcome(rows_in=rows_in, rows_out=rows_out, metrics={"splits": splits})


def write_texts(job: Job, with_references: bool) -> tuple[list[str], int, bool]:
    """Put TEXT rows of all that is to be scored into ``FOLDER``, for no actor to need the prompt table; their splits, how
    many there are, and whether any prompt is a conversation."""
    sources = {key: artifact for key, artifact in sorted(job.inputs.items()) if key != "prompts"}
    splits = _splits(list(sources.values()))
    job.out.store.delete(job.out.file(FOLDER))
    rows, answered, dialogue = 0, 0, False
    cuts = ((split, inputs) for split in splits for inputs in slices(job.inputs, split))
    for number, (split, inputs) in enumerate(cuts):
        prompts = _of_split(inputs["prompts"], ["prompt_id", "split", "prompt", "messages", "reference"], split)
        answers = _texts([_of_split(inputs[key], [*KEYS, "text"], split) for key in sources], prompts)
        references = _texts([_references(prompts)] if with_references else [], prompts)
        job.out.write_rows(pa.concat_tables([references, answers]), f"part-{number:05d}", FOLDER)
        rows += references.num_rows + answers.num_rows
        answered += answers.num_rows
        dialogue |= prompts["messages"].null_count < prompts.num_rows
    if lost := sum(source.dataset().count_rows() for source in sources.values()) - answered:
        raise PladError(f"{lost} responses are to no prompt of {job.inputs['prompts'].path}")
    return splits, rows, dialogue


def _splits(sources: list[Artifact]) -> list[str]:
    batches = (batch for source in sources for batch in source.batches(["split"]))
    return sorted({split for batch in batches for split in pc.unique(batch.column("split")).to_pylist()})


def _of_split(artifact: Artifact, columns: list[str], split: str) -> pa.Table:
    return artifact.dataset().to_table(columns=columns, filter=pads.field("split") == split)


def _texts(tables: list[pa.Table], prompts: pa.Table) -> pa.Table:
    """TEXT rows of the texts in ``tables`` that belong to ``prompts``."""
    if not tables:
        return TEXT.empty_table()
    table = pa.concat_tables(tables)
    place = pc.index_in(table["prompt_id"], value_set=flat(prompts["prompt_id"]))
    for name in ("prompt", "reference"):
        table = table.append_column(name, flat(prompts[name]).take(flat(place)))
    return table.filter(pc.is_valid(place)).cast(TEXT)


def _references(prompts: pa.Table) -> pa.Table:
    """The references of ``prompts`` as texts of the policy ``reference``, rid ``reference:<prompt_id>``."""
    table = prompts.filter(pc.is_valid(prompts["reference"]))
    columns = {
        "rid": pc.binary_join_element_wise(REFERENCE, table["prompt_id"], ":"),
        "policy": pa.array([REFERENCE] * table.num_rows, pa.string()),
        "prompt_id": table["prompt_id"],
        "split": table["split"],
        "temperature": pa.array([0.0] * table.num_rows, pa.float64()),
        "sample": pa.array([0] * table.num_rows, pa.int32()),
        "text": table["reference"],
    }
    return pa.table(columns, schema=pa.schema([TEXT.field(name) for name in columns]))


def _actors(scorer: Scorer, runtime: Runtime) -> dict[str, Any]:
    """How Ray Data is to place them."""
    actors = scorers(scorer, runtime)
    actor = actors[0]
    return {
        "concurrency": len(actors),
        "num_cpus": actor.cpus,
        "num_gpus": actor.gpus,
        "accelerator_type": actor.accelerator,
    }


def _collect(job: Job, scored: ray.data.Dataset, total: int) -> int:
    """Stream the scores into Parquet parts; the first one that is no finite number ends the stage."""
    waiting: list[pa.Table] = []
    rows, part = 0, 0
    for block in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
        batch = cast(pa.Table, block)
        _check(batch, job.config["scorer"]["name"])
        waiting.append(batch.select(SCORE.names).cast(SCORE))
        rows += batch.num_rows
        job.progress(rows, total, "texts")
        if sum(b.num_rows for b in waiting) >= PART_ROWS:
            job.out.write_rows(pa.concat_tables(waiting), f"part-{part:05d}")
            waiting, part = [], part + 1
    if waiting or part == 0:
        job.out.write_rows(pa.concat_tables(waiting) if waiting else SCORE.empty_table(), f"part-{part:05d}")
    return rows


def _check(batch: pa.Table, scorer: str) -> None:
    failed = batch["error"].drop_null()
    if len(failed):
        raise PladError(failed[0].as_py())
    bad = batch.filter(pc.invert(pc.is_finite(batch["score"])))
    if bad.num_rows:
        row = bad.slice(0, 1).to_pylist()[0]
        raise PladError(
            f"scorer {scorer} gave {row['score']} for row {row['rid']} (policy {row['policy']}, prompt "
            f"{row['prompt_id']}, temperature {row['temperature']:g}); a score must be a finite number"
        )


class ScoreBatches:
    """Actor: scores batches of TEXT rows."""

    def __init__(self, scorer: dict[str, Any], dialogue: bool, path: list[str], source: logs.Source | None = None):
        logs.begin(source)
        # Ray gives workers its own search path: a user's module lies on the driver's
        sys.path.extend(folder for folder in path if folder not in sys.path)
        self.score = base.build(Scorer.model_validate(scorer), dialogue)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Keys, ``score`` and ``error``. A message to the user travels as data: Ray Data drops what an error wraps."""
        scores: list[float] | list[None]
        try:
            scores, error = self.score(*(batch[name].to_pylist() for name in ("prompt", "text", "reference"))), None
        except PladError as failure:
            scores, error = [None] * batch.num_rows, str(failure)
        keyed = batch.select(KEYS).append_column("score", pa.array(scores, pa.float64()))
        return keyed.append_column("error", pa.array([error] * batch.num_rows, pa.string()))
