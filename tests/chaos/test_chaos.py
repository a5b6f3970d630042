"""Random kills by seed, other ones every day; and that what they look for would be found."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from plad_ray.artifacts import Artifact, Store
from tests.chaos import series
from tests.chaos.checks import check_rows, check_store, check_training, held
from tests.chaos.scenarios import KINDS
from tests.chaos.seeds import Outcome, draw
from tests.machines import ROOT, Machine

DAY = datetime.date(2026, 11, 25)


@pytest.mark.train
@pytest.mark.timeout(1800)
def test_todays_seeds_hold(tmp_path):
    """No row is lost or doubled, nothing leaks. Two minutes; a seed has a limit of its own."""
    command, log = [sys.executable, "-m", "tests.chaos", "--today"], tmp_path / "log"
    with log.open("w") as stream, subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream) as series:
        try:
            series.wait(1700)
        finally:
            series.terminate()  # not killed: it takes its cluster down
    said = log.read_text()
    assert series.returncode == 0, said[-8000:]  # its last line says how to repeat a seed
    assert len([line for line in said.splitlines() if line.startswith('{"seed": ')]) == 3


def test_every_seed_always_draws_the_same_and_everybody_is_killed():
    kills = [draw(seed) for seed in series.SEEDS]
    assert kills == [draw(seed) for seed in series.SEEDS]
    assert set(Counter((k.scenario, k.victim) for k in kills)) == {
        (name, victim) for name, kind in KINDS.items() for victim in (*kind.victims, "driver")
    }
    assert Counter(k.scenario for k in kills) == {name: kind.share for name, kind in KINDS.items()}
    assert {k.store for k in kills} == {"local", "s3"}


def test_todays_seeds_are_others_tomorrow_and_quick():
    days = [series.todays(DAY + datetime.timedelta(days=n)) for n in range(5)]
    assert len({seed for day in days for seed in day}) == 15
    assert all(series.is_quick(draw(seed)) for day in days for seed in day)


def test_an_outcome_is_recorded_once_a_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(series, "OUTCOMES", tmp_path / "OUTCOMES.jsonl")
    assert series.recorded() == {}
    for seed, broken in ((2, None), (1, "rows"), (1, None), (2, "leak")):
        series.record(Outcome(draw(seed), "engine at 0.50", False, broken, 1.0))
    assert [(seed, line["broken"]) for seed, line in series.recorded().items()] == [(1, None), (2, "leak")]
    assert series.numbers(["3", "10-12"]) == [3, 10, 11, 12]


def test_recorded_outcomes_are_of_their_seeds_and_held():
    lines = series.recorded()
    assert sorted(lines) == [*series.SEEDS]
    for seed, line in lines.items():
        assert {**line, **asdict(draw(seed))} == line, "the seed kills something else now: run it again"
        assert line["struck"] and line["broken"] is None


@pytest.mark.parametrize("rids", ["abc", "abca", "abcdd"])
def test_a_lost_and_a_doubled_row_are_found(tmp_path, rids):
    out = Artifact(Store(str(tmp_path)), "responses-0")
    out.write_rows(pa.table({"rid": list("abcd")}))
    out.write_rows(pa.table({"rid": pa.array([], pa.string())}), folder="errors")
    out.finish({"rows": {"in": 4, "out": 4, "dropped": {}}})
    check_rows(out, 4)
    out.write_rows(pa.table({"rid": list(rids)}))
    with pytest.raises(AssertionError, match="rows of"):
        check_rows(out, 4)


@pytest.mark.parametrize("change", [{"loss": 1 + 3e-6}, {"step": 3}, {"weight": 1 + 3e-6}], ids=str)
def test_another_loss_step_or_weight_is_found(tmp_path, change):
    unbroken, out = (Artifact(Store(str(tmp_path / name)), "distill-0") for name in "ab")
    write_training(unbroken)
    write_training(out)
    check_training(out, unbroken)
    write_training(out, **change)
    with pytest.raises(AssertionError):
        check_training(out, unbroken)


@pytest.mark.parametrize("name", ["lease.json", "work/train/x"])
def test_what_is_left_in_a_store_is_found(tmp_path, name):
    store = Store(str(tmp_path))
    store.write_bytes("distill-0/manifest.json", b"{}")
    check_store(store)
    store.write_bytes(f"distill-0/{name}", b"{}")
    with pytest.raises(AssertionError):
        check_store(store)


def test_what_is_left_on_a_cluster_is_found(ray_session, tmp_path):
    class Left:
        def ping(self) -> None: ...

    here = SimpleNamespace(head=Machine(tmp_path, psutil.Process(os.getpid())), workers=[])
    actor = ray_session.remote(num_cpus=1)(Left).remote()
    group = ray_session.util.placement_group([{"CPU": 1}])
    ray_session.get([actor.ping.remote(), group.ready()])
    time.sleep(1)  # how many CPUs are free is told with a delay
    told = held(here)
    assert "ray::Left" in told and f"placement group {group.id.hex()}" in told
    assert [what for what in told if what.endswith(" CPUs")]
    ray_session.kill(actor)
    ray_session.util.remove_placement_group(group)


def write_training(out: Artifact, loss: float = 1.0, step: int = 2, weight: float = 1.0) -> None:
    lines = [{"step": 1, "loss": 1.0, "grad_norm": 1.0, "num_tokens": 8}]
    lines += [{"step": step, "loss": loss, "grad_norm": 1.0, "num_tokens": 16}]
    folder = Path(out.store.path(out.file("files")))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_file({"lora_A": torch.full((2, 2), weight)}, folder / "adapter_model.safetensors")
