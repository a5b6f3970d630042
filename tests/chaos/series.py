"""Many seeds one after another, on one cluster. Each one's outcome is a line of OUTCOMES.jsonl; seeds that held there are
left out, so a stopped series goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plad_ray.stages import git_commit
from tests.chaos.machines import Machines, machines
from tests.chaos.scenarios import References
from tests.chaos.seeds import QUICK, Outcome, draw, one
from tests.stores.s3 import BUCKET, Faults, s3

OUTCOMES = Path(__file__).with_name("OUTCOMES.jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Random kills, by seed.")
    parser.add_argument("seeds", nargs="*", help="numbers and ranges: 3 10-19")
    parser.add_argument("--again", action="store_true", help="also those that held before")
    parser.add_argument("--today", type=int, metavar="N", help="N quick seeds by date, not recorded")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then no further seed is begun")
    parser.add_argument("--draw", action="store_true", help="only say what they kill")
    arguments = parser.parse_args()
    seeds = numbers(arguments.seeds) if arguments.today is None else todays(arguments.today, datetime.date.today())
    if arguments.draw:
        for seed in seeds:
            print(draw(seed))
        return 0
    if arguments.today is None and not arguments.again:
        seeds = [seed for seed in seeds if seed not in held()]
    print(f"seeds {' '.join(map(str, seeds))}", flush=True)
    until = time.time() + 60 * arguments.minutes
    broken = [o.kill.seed for o in outcomes(seeds, until, record=arguments.today is None) if o.broken]
    for seed in broken:
        print(f"to repeat it: make chaos SEEDS={seed}")
    return 1 if broken else 0


def outcomes(seeds: list[int], until: float, record: bool) -> Iterator[Outcome]:
    with (
        tempfile.TemporaryDirectory(prefix="plad-chaos-") as folder,
        world(Path(folder)) as (running, references, roots),
    ):
        for seed in seeds:
            if time.time() > until:
                return
            place = Path(folder) / f"seed-{seed}"
            place.mkdir()
            outcome = one(seed, running, references, roots, place)
            line = {**outcome.line(), "date": f"{datetime.date.today()}", "commit": git_commit()}
            if record:
                with OUTCOMES.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            yield outcome


@contextmanager
def world(folder: Path) -> Iterator[tuple[Machines, References, dict[str, str]]]:
    """A cluster, undisturbed runs, and the beginnings of local stores and of those on an S3 server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    with s3(Faults()) as address, machines() as running:
        query = f"endpoint_override={address}&scheme=http"
        roots = {"local": f"{folder}/stores/{{name}}", "s3": f"s3://{BUCKET}/{{name}}?{query}"}
        yield running, References(folder), roots


def numbers(words: list[str]) -> list[int]:
    """``3 10-12`` to 3, 10, 11, 12."""
    ranges = [word.partition("-") for word in words]
    return [seed for first, dash, last in ranges for seed in range(int(first), int(last if dash else first) + 1)]


def todays(count: int, day: datetime.date) -> list[int]:
    """Other seeds every day, of those that take half a minute."""
    start = day.toordinal() * 100
    return [seed for seed in range(start, start + 100) if draw(seed).scenario in QUICK][:count]


def held() -> set[int]:
    """Seeds whose newest line says that everything held."""
    newest = {}
    for line in OUTCOMES.read_text().splitlines() if OUTCOMES.is_file() else []:
        found = json.loads(line)
        newest[found["seed"]] = found["broken"] is None
    return {seed for seed, well in newest.items() if well}
