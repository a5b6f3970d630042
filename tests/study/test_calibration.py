"""Likelihood against quality: the numbers again by brute force, the likelihoods by a plain forward pass, T and ECE on
simulated texts whose calibration is known."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from plad_ray.artifacts import Artifact
from plad_ray.config import Evaluate
from plad_ray.errors import PladError
from plad_ray.evaluate.bootstrap import resampled_means
from plad_ray.stages import Job
from plad_ray.study import calibration, likelihoods
from plad_ray.study.result import Table
from plad_ray.tasks import at_workers
from tests.study.here import named, rows


def test_numbers_equal_brute_force_over_the_stored_texts(here):
    result, store, last = here.run("calibration", here.experiment(split_seed=0), samples=4, seeds=[0, 1])
    [table] = result.tables
    assert [row[0] for row in table.rows] == ["initial student", "distilled"]
    for row, reader in zip(table.rows, ("student", "distilled"), strict=True):
        aurocs, taus = [], []
        for scores, read in zip(named(last, store, "sample-scores"), named(last, store, "likelihoods"), strict=True):
            logps = {r["rid"]: r["logp"] / r["tokens"] for r in rows(read) if r["reader"] == reader}
            prompts: dict[str, list] = {}
            for r in rows(scores):
                if r["split"] == "test" and r["rid"] in logps:
                    prompts.setdefault(r["prompt_id"], []).append((r["score"], logps[r["rid"]]))
            for texts in prompts.values():
                signs = [np.sign(a[0] - b[0]) * np.sign(a[1] - b[1]) for a, b in combinations(texts, 2)]
                decided = [s for s, (a, b) in zip(signs, combinations(texts, 2), strict=True) if a[0] != b[0]]
                aurocs += [fmean((s + 1) / 2 for s in decided)] if decided else []
                untied = [len([1 for a, b in combinations(texts, 2) if a[i] != b[i]]) for i in (0, 1)]
                taus += [sum(signs) / np.sqrt(untied[0] * untied[1])] if all(untied) else []
        assert row[1].mean == pytest.approx(fmean(aurocs)) and row[1].n == len(aurocs)
        assert row[3].mean == pytest.approx(fmean(taus))
        assert row[6].low <= row[6].mean <= row[6].high
    assert table.rows[1][2].mean == pytest.approx(table.rows[1][1].mean - table.rows[0][1].mean)


def test_likelihoods_are_those_of_a_plain_forward_pass(here):
    _, store, last = here.run("calibration", here.experiment(), samples=2)
    [texts], [read] = named(last, store, "samples"), named(last, store, "likelihoods")
    [prompts] = named(last, store, "prompts")
    model = AutoModelForCausalLM.from_pretrained(here.student)
    asked = {row["prompt_id"]: row["prompt"] for row in rows(prompts)}
    found = {row["rid"]: row for row in rows(read) if row["reader"] == "student"}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(here.student)
    checked = 0
    for text in rows(texts):
        if text["policy"] != "student" or not text["text"].strip():
            continue
        prompt = tokenizer(asked[text["prompt_id"]], add_special_tokens=False)["input_ids"]
        response = tokenizer(text["text"], add_special_tokens=False)["input_ids"]
        response += [tokenizer.eos_token_id] if text["finish_reason"] == "stop" else []
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        expected = sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(response))
        assert found[text["rid"]]["logp"] == pytest.approx(expected, abs=1e-4)
        assert found[text["rid"]]["tokens"] == len(response)
        checked += 1
    assert checked > 3


@pytest.mark.parametrize("workers", [1, 2])
def test_likelihoods_are_the_same_by_any_number_of_workers(workers, here, ray_session, monkeypatch):
    """Read by Ray's tasks, and in this process by one."""
    exp = here.experiment()
    _, store, last = here.run("calibration", exp, samples=2)
    [stage] = [s for s in here.ran if s.name == "likelihoods"]
    [alone] = named(last, store, "likelihoods")
    runtime = exp.runtime.model_copy(update={"train": exp.runtime.train.model_copy(update={"workers": workers})})
    inputs = {key: parent.artifact(store) for key, parent in stage.inputs.items()}
    again = Job(stage.name, stage.config, inputs, Artifact(store, f"again-{workers}"), runtime)
    monkeypatch.setattr(likelihoods, "at_workers", at_workers)
    outcome = likelihoods.run(again)
    assert (outcome.rows_in, outcome.rows_out) == tuple(alone.manifest["rows"][side] for side in ("in", "out"))
    for first, second in zip(rows(alone), rows(again.out), strict=True):
        assert {**first, "logp": None} == {**second, "logp": None}
        assert first["logp"] == pytest.approx(second["logp"], abs=1e-4)


def simulated(temperature: float, prompts: int = 3000) -> calibration.Texts:
    """Pairs of texts whose order is right with probability σ(Δ/T)."""
    rng = np.random.default_rng(1)
    logps = rng.normal(size=(prompts, 2))
    gaps = logps[:, 0] - logps[:, 1]
    first = rng.random(prompts) < 1 / (1 + np.exp(-gaps / temperature))
    scores = [np.array([1.0, 0.0]) if f else np.array([0.0, 1.0]) for f in first]
    return calibration.Texts(scores, list(logps), pa.array(map(str, range(prompts))))


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_a_known_temperature_is_found_and_then_nothing_is_off(temperature):
    texts = simulated(temperature)
    gaps, right = (np.concatenate(values) for values in zip(*texts.pairs(), strict=True))
    assert calibration.fit_temperature(gaps, right) == pytest.approx(temperature, rel=0.15)
    assert calibration.ece(calibration.binned(texts.pairs(), temperature).sum(0)) < 0.03
    assert calibration.ece(calibration.binned(texts.pairs(), temperature / 10).sum(0)) > 0.1


@pytest.mark.parametrize("read_at", [1.0, 0.5])
def test_the_interval_of_ece_covers_the_truth(read_at):
    """Of 100 samples of 300 pairs, read with the right T, where nothing is off, or with half of it."""
    rng = np.random.default_rng(0)

    def drawn(pairs: int) -> np.ndarray:
        gaps = np.abs(rng.normal(size=pairs))
        p, right = (1 / (1 + np.exp(-gaps / read_at))), rng.random(pairs) < 1 / (1 + np.exp(-gaps))
        place = np.minimum((p - 0.5) * 2 * calibration.BINS, calibration.BINS - 1).astype(int)
        in_bin = place[:, None] == np.arange(calibration.BINS)
        return np.stack([np.where(in_bin, values[:, None], 0.0) for values in (p, right, np.ones(pairs))], 1)

    truth = 0.0 if read_at == 1 else float(calibration.ece(drawn(100_000).sum(0)))
    covered, percentiles = [], []
    for _ in range(100):
        sums = drawn(300)
        again = resampled_means([sums.reshape(300, -1).T], 200, 0).reshape(3, calibration.BINS, -1)
        value, values = float(calibration.ece(sums.sum(0))), calibration.ece(again)
        low, high = calibration.ece_ends(sums.sum(0), again, 0.95)
        assert low <= value <= high and low <= max(0, 2 * value - values.mean()) <= high
        covered.append(low <= truth <= high)
        percentiles.append(np.percentile(values, 2.5) <= truth)
    assert np.mean(covered) >= 0.92 and (truth or np.mean(percentiles) == 0)


@pytest.mark.parametrize("decided", [1, 0])
def test_few_prompts_that_decide_give_numbers_or_none_but_never_nan(decided):
    """Of eight prompts one has two different scores, so a third of the resamples have no pair; or none has."""
    scores = [np.array([1.0, 0.0])] * decided + [np.ones(2)] * (8 - decided)
    few = calibration.Texts(scores, [np.array([-1.0, -2.0])] * 8, pa.array(map(str, range(8))))
    read = calibration.Reading.of("student", [simulated(1.0, 50)], [few], [few], Evaluate())
    table = calibration.table([read], 0.95)
    assert Table.model_validate_json(table.model_dump_json()) == table
    assert (
        (read.ece is not None and 0 <= read.ece.low <= read.ece.mean)
        if decided
        else (read.ece, read.auroc) == (None,) * 2
    )
    assert ("no prompt has texts of different scores" in read.sentence()) == (not decided)


def test_known_orders():
    up, down = np.array([0.1, 0.2, 0.2]), np.array([-1.0, -2.0, -3.0])
    assert calibration.tau(up, -down) == pytest.approx(2 / np.sqrt(2 * 3))
    assert (calibration.auroc(up, -down), calibration.auroc(up, down)) == (1, 0)
    assert calibration.auroc(up, np.zeros(3)) == 0.5 and np.isnan(calibration.auroc(np.ones(3), down))


def test_what_cannot_be_read_is_refused(here):
    with pytest.raises(PladError, match=r"study\.temperature 0: all samples of a prompt would be the same"):
        here.run("calibration", here.experiment(), temperature=0)
    with pytest.raises(PladError, match=r"study\.policies: texts are of teacher and student"):
        here.run("calibration", here.experiment(), policies=["distilled"])
