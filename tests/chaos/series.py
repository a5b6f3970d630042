"""Many seeds one after another, on one cluster. ``OUTCOMES.jsonl`` has a line for the newest outcome of each."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.scenarios import References
from tests.chaos.seeds import Kill, Outcome, draw, one
from tests.machines import Machines, machines
from tests.stores.faults import Faults
from tests.stores.s3 import BUCKET, s3

OUTCOMES = Path(__file__).with_name("OUTCOMES.jsonl")
SEEDS = range(100)


def main(folder: Path) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Random kills, by seed.")
    parser.add_argument("seeds", nargs="*", help="numbers and ranges: 3 10-19")
    parser.add_argument("--missing", action="store_true", help="only those that did not hold yet")
    parser.add_argument("--today", action="store_true", help="three quick ones by date, whose outcome is not recorded")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then no further seed is begun")
    parser.add_argument("--draw", action="store_true", help="only say what they kill")
    arguments = parser.parse_args()
    seeds = todays(datetime.date.today()) if arguments.today else numbers(arguments.seeds)
    known = recorded()
    if arguments.missing:
        seeds = [seed for seed in seeds if seed not in known or known[seed]["broken"]]
    if arguments.draw:
        print(*map(draw, seeds), sep="\n")
        return 0
    broken = []
    for outcome in outcomes(seeds, 60 * arguments.minutes, folder):
        print(json.dumps(outcome.line()), flush=True)
        if not arguments.today:
            record(outcome)
        if outcome.broken:
            broken.append(outcome.kill.seed)
    if broken:
        print(f"to repeat: make chaos SEEDS='{' '.join(map(str, broken))}'")
    return 1 if broken else 0


def outcomes(seeds: list[int], seconds: float, folder: Path) -> Iterator[Outcome]:
    with world(folder) as (running, references, roots):
        until = time.monotonic() + seconds
        for seed in seeds:
            if time.monotonic() > until:
                return
            print(f"{datetime.datetime.now():%H:%M:%S} {draw(seed)}", file=sys.stderr)
            place = folder / f"seed-{seed}"
            place.mkdir()
            yield one(seed, running, references, roots, place)


@contextmanager
def world(folder: Path) -> Iterator[tuple[Machines, References, dict[str, str]]]:
    """A cluster that this process and its drivers work on, undisturbed runs, and where local stores and those on an S3
    server begin."""
    import ray

    from plad_ray.cluster import connect
    from plad_ray.config import Runtime

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    with s3(Faults()) as address, machines(folder, count=2, cpus=3) as running:
        os.environ["RAY_ADDRESS"] = running.address
        connect(Runtime())
        try:
            query = f"endpoint_override={address}&scheme=http"
            roots = {"local": f"{folder}/stores/{{name}}", "s3": f"s3://{BUCKET}/{{name}}?{query}"}
            yield running, References(folder), roots
        finally:
            ray.shutdown()


def numbers(words: list[str]) -> list[int]:
    """``3 10-12`` to 3, 10, 11, 12."""
    ranges = [word.partition("-") for word in words]
    return [seed for first, dash, last in ranges for seed in range(int(first), int(last if dash else first) + 1)]


def todays(day: datetime.date) -> list[int]:
    """Three of those that end soonest, other ones every day."""
    quick = [seed for seed in SEEDS if is_quick(draw(seed))]
    return [quick[(3 * day.toordinal() + place) % len(quick)] for place in range(3)]


def is_quick(kill: Kill) -> bool:
    """Half a minute: a lost machine is missed and replaced in more, and a training starts in more."""
    return kill.scenario == "generation" and kill.store == "local" and kill.victim != "raylet"


def recorded() -> dict[int, dict[str, Any]]:
    """The lines of ``OUTCOMES`` by seed."""
    lines = OUTCOMES.read_text().splitlines() if OUTCOMES.is_file() else []
    return {line["seed"]: line for line in map(json.loads, lines)}


def record(outcome: Outcome) -> None:
    line = {**outcome.line(), "date": f"{datetime.date.today()}"}
    lines = {**recorded(), line["seed"]: line}
    OUTCOMES.write_text("".join(json.dumps(lines[seed]) + "\n" for seed in sorted(lines)))
