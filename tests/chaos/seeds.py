"""One random kill: ``draw`` says what a seed kills, ``one`` does it and checks what the run has made of it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from plad_ray.artifacts import Store
from tests.chaos.checks import check_cluster
from tests.chaos.scenarios import KINDS, References, Scenario
from tests.machines import Machines, title_of

#: seconds that a driver may take
LIMIT = 300.0
#: whoever loses one of them starts the run again; Ray Train's controller is its driver's other half
ENDS_THE_RUN = ("driver", "controller")


@dataclass(frozen=True)
class Kill:
    """``victim`` dies ``later`` seconds after the share ``at`` of the run is finished and there is one."""

    seed: int
    scenario: str
    store: str
    victim: str
    at: float
    later: float


@dataclass(frozen=True)
class Outcome:
    """``struck``: what was killed and how far the run was, None when it ended first. ``repeated``: it was started
    again. ``broken``: what does not hold."""

    kill: Kill
    struck: str | None
    repeated: bool
    broken: str | None
    seconds: float

    def line(self) -> dict[str, Any]:
        rest = {name: getattr(self, name) for name in ("struck", "repeated", "broken")}
        return {**asdict(self.kill), **rest, "seconds": round(self.seconds, 1)}


def draw(seed: int) -> Kill:
    """The same for the same seed, always."""
    dice = random.Random(seed)
    name, victim = DECK[seed % len(DECK)]
    at, later = (round(dice.uniform(0, most), 2) for most in (KINDS[name].latest, KINDS[name].after))
    return Kill(seed, name, dice.choice(["local", "s3"]), victim, at, later)


def _deck() -> list[tuple[str, str]]:
    """Scenario and victim of a hundred seeds: each scenario as often as its share, its victims alike often."""
    deck = []
    for name, kind in KINDS.items():
        deck += [(name, victim) for victim in islice(cycle([*kind.victims, "driver"]), kind.share)]
    random.Random(0).shuffle(deck)
    return deck


DECK = _deck()


def one(seed: int, machines: Machines, references: References, roots: dict[str, str], folder: Path) -> Outcome:
    """``roots``: where stores of each kind begin; ``folder``: of this seed alone. Lost machines are replaced."""
    kill, started, count = draw(seed), time.monotonic(), len(machines.workers)
    scenario = KINDS[kill.scenario].make(Store(roots[kill.store].format(name=folder.name)), folder, references)
    struck, repeated, broken, log = None, False, None, folder / "log"
    driver, until = scenario.driver.start(log), started + LIMIT
    try:
        struck = _strike(kill, scenario, driver, until, machines)
        if repeated := _ended(driver, until, log) != 0 and struck is not None and kill.victim in ENDS_THE_RUN:
            driver = scenario.driver.start(log)  # at once, while what the dead one had started may still be there
            until = time.monotonic() + LIMIT
        assert _ended(driver, until, log) == 0, log.read_text()[-2000:]
        assert struck is not None, "the run was over before the kill"
        scenario.check()
        check_cluster(machines)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        broken = f"{type(error).__name__}: {str(error).strip()[-6000:]}"
    finally:
        driver.kill()
    machines.add(count - len(machines.workers))
    return Outcome(kill, struck, repeated, broken, time.monotonic() - started)


def _ended(driver: BaseProcess, until: float, log: Path) -> int:
    """The exit status, when there is one."""
    driver.join(max(0.0, until - time.monotonic()))
    if driver.exitcode is None:
        os.kill(driver.pid or 0, signal.SIGUSR1)
        driver.join(2)
        raise AssertionError(f"still running after {LIMIT:.0f} s, here: {log.read_text()[-6000:]}")
    return driver.exitcode


def _strike(kill: Kill, scenario: Scenario, driver: BaseProcess, until: float, machines: Machines) -> str | None:
    """Wait for the share, for a victim, and ``later``; None when the run was over before, or its time."""
    dice = random.Random(kill.seed)
    while driver.exitcode is None and time.monotonic() < until:
        if (reached := scenario.progress()) >= kill.at and _victims(kill, driver, machines):
            time.sleep(kill.later)
            if victims := _victims(kill, driver, machines):
                title, strike = dice.choice(victims)
                strike()
                return f"{title} at {reached:.2f}"
        time.sleep(0.2)
    return None


def _victims(kill: Kill, driver: BaseProcess, machines: Machines) -> list[tuple[str, Callable[[], None]]]:
    """Title and way to kill of each."""
    if kill.victim == "driver":
        return [("driver", driver.kill)]
    pattern = KINDS[kill.scenario].victims[kill.victim]
    found = [(machine, worker) for machine in (machines.head, *machines.workers) for worker in machine.workers(pattern)]
    if kill.victim == "raylet":
        return [(f"the machine of {title_of(w)}", lambda m=m: machines.kill(m)) for m, w in found if m != machines.head]
    return [(title_of(worker), worker.kill) for _, worker in found]
