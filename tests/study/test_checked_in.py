"""The studies of ``jobs/studies`` to their end, with a few prompts, models of a few thousand weights and short searches."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from plad_ray import study
from plad_ray.config import load_study
from plad_ray.study import trials
from plad_ray.study.result import Interval
from tests.generate.api_server import serving
from tests.study.test_judge import by_numbers, judge
from tests.study.test_study_file import FILES, study_of
from tests.study.test_sweep import one_after_another

SIZE = "config: {hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 1}"
TINY = [
    "data.sizes={train: 64, distill: 48, dev: 16, test: 16}",
    *(f"{role}.model.scratch={{model_type: llama, tokenizer: words, {SIZE}}}" for role in ("teacher", "student")),
    *(f"{role}.engine=transformers" for role in ("teacher", "student")),
    "teacher.sft={method: full, epochs: 2, batch_size: 16, learning_rate: 3.0e-3}",
    "student.sft={method: full, epochs: 1, batch_size: 16, learning_rate: 3.0e-3, limit: 32}",
    "pairs.drop_truncated_chosen=false",  # a teacher of eight steps does not end its texts
    "distill.batch_size=16",
    "distill.epochs=1",
    "evaluate.temperatures=[0.7]",
    "evaluate.bootstrap=50",
    "runtime.parallel_stages=1",
    "runtime.train={zero_stage: 0}",
]
SHORT = {
    "ablation": [
        "study.seeds=[0]",
        "study.variants={no-sft-term: {distill.objective.sft_weight: 0}, agreeing: {pairs.min_agreement: 0.2}, "
        "self-consistent: {pairs.chosen.temperature: 0.7, pairs.min_self_consistency: 0.1}, "
        "full: {distill.method: full}}",
        "study.search={seeds: [100], grid: {distill.learning_rate: [1.0e-3, 3.0e-3]}}",
    ],
    "calibration": ["study.seeds=[0]", "study.samples=3", "study.limit=8"],
    "compare": ["study.seeds=[0]", "study.search={seeds: [100], grid: {distill.learning_rate: [1.0e-3, 3.0e-3]}}"],
    "judge": ["study.limit=8"],
    "length": ["study.seeds=[0]", "study.minimum=3"],
    "real-pairs": [
        "study.seeds=[0]",
        "study.shares=[0.0, 1.0]",
        "study.search={seeds: [100], grid: {distill.learning_rate: [1.0e-3, 3.0e-3]}}",
    ],
    "scaling": ["study.seeds=[0]", "study.shares=[0.5, 1.0]", "study.search=null"],
    "sweep": ["study.grid={distill.objective.margin: [0.5, 2.0]}"],
    "table1": [
        "study.seeds=[0]",
        "study.search=null",
        f"study.across.wider={{student.model.scratch: {{model_type: llama, tokenizer: words, {SIZE.replace('32', '64')}}}}}",
        "compare={seqkd: {distill: {objective: {name: seqkd}}}}",
    ],
    "tax": [
        "study.base_weights=[0.5]",
        "study.second={data: {source: demo, facts: [4], sizes: {train: 1, distill: 1, dev: 1, test: 8}}}",
    ],
    "teacher": [
        "study.seeds=[0]",
        "study.teachers={a: {teacher.sft.limit: 16}, b: {teacher.sft.limit: 32}, all: {}}",
    ],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_checked_in_study_runs_to_its_end(here, file, monkeypatch):
    monkeypatch.setattr(trials, "run", one_after_another)
    name = study_of(file)
    overrides = [*TINY, f"runtime.store={here.folder}/runs", *SHORT.get(file.stem, [])]
    if name != "reward":  # the demo's own scorer gives all that so weak a student writes the same 0
        overrides.append("scorer={name: 'tests.study.test_reward:overlap'}")
    with serving(judge(by_numbers)) if name == "judge" else nullcontext() as server:
        if server is not None:
            overrides.append(f"study.judge.api.base_url={server.url}")
        exp, settings = load_study(name, study.find(name).settings, file, overrides)
        result, store, last = here.run(name, exp, **settings.model_dump())
    assert result.summary and result.tables
    measured = [cell for table in result.tables for row in table.rows for cell in row if isinstance(cell, Interval)]
    assert measured and all(cell.low <= cell.mean <= cell.high for cell in measured)
    assert last.artifact(store).finished
