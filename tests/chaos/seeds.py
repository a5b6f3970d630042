"""One random kill: ``draw`` says what a seed kills, ``one`` does it and checks what the run has made of it."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plad_ray.artifacts import Store
from tests.chaos.machines import Machines, work_of
from tests.chaos.scenarios import SCENARIOS, References, Scenario

#: of a hundred seeds; a seed of the first two takes half a minute, one of the others some minutes
SHARES = {"generation": 50, "training": 34, "pipeline": 12, "sweep": 4}
QUICK = ("generation", "training")
#: seconds that a run may take, kill and recovery included
LIMIT = 420.0


@dataclass(frozen=True)
class Kill:
    """``victim`` dies ``later`` seconds after the share ``at`` of the run is finished."""

    seed: int
    scenario: str
    store: str
    victim: str
    at: float
    later: float


@dataclass(frozen=True)
class Outcome:
    """``struck``: what was killed and how far the run was, None when it ended first. ``broken``: what does not hold."""

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
    scenario = dice.choices(list(SHARES), list(SHARES.values()))[0]
    store = dice.choice(["local", "s3"])
    victim = dice.choice([*SCENARIOS[scenario].victims, "driver"])
    return Kill(seed, scenario, store, victim, round(dice.uniform(0, 0.9), 2), round(dice.uniform(0, 2), 2))


def one(seed: int, machines: Machines, references: References, roots: dict[str, str], folder: Path) -> Outcome:
    """``roots``: where stores of each kind begin; ``folder``: of this seed alone."""
    kill, started = draw(seed), time.time()
    scenario = SCENARIOS[kill.scenario](Store(roots[kill.store].format(name=folder.name)), folder, references)
    struck, repeated, broken = None, False, None
    try:
        disturb = _kill_driver if kill.victim == "driver" else _kill_another
        struck, repeated = disturb(kill, scenario, machines, folder)
        scenario.check()
        if held := machines.held():
            broken = f"still held: {', '.join(held)}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        broken = f"{type(error).__name__}: {str(error).strip()[:500]}"
    machines.mend()
    return Outcome(kill, struck, repeated, broken, time.time() - started)


def _kill_driver(kill: Kill, scenario: Scenario, machines: Machines, folder: Path) -> tuple[str | None, bool]:
    """Its command is repeated at once, while what the dead driver had started may still be there."""
    log = folder / "driver.log"
    driver = scenario.driver(log)
    try:
        struck = _strike(kill, scenario, lambda: driver.poll() is not None, lambda: driver.send_signal(signal.SIGKILL))
        code = driver.wait(LIMIT)
    except subprocess.TimeoutExpired:
        driver.kill()
        raise
    if struck is None:
        assert code == 0, log.read_text()[-2000:]
        return None, False
    scenario.run()
    return f"driver {struck}", True


def _kill_another(kill: Kill, scenario: Scenario, machines: Machines, folder: Path) -> tuple[str | None, bool]:
    """The run goes on by itself. Only Ray Train's controller is no more than its driver: it takes the run with it."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            scenario.run()
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that waits
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    pattern, dice, killed = scenario.victims[kill.victim], random.Random(kill.seed), []

    def strike() -> None:
        found = machines.processes(pattern)
        if not found:
            raise LookupError(pattern)
        process = dice.choice(found)
        killed.append(work_of(process))
        if kill.victim == "raylet":
            machines.kill_machine_of(process)
        else:
            process.send_signal(signal.SIGKILL)

    struck = _strike(kill, scenario, lambda: not thread.is_alive(), strike)
    thread.join(LIMIT)
    assert not thread.is_alive(), f"still running after {LIMIT:.0f} s"
    repeated = bool(failure) and struck is not None and kill.victim == "controller"
    if repeated:
        scenario.run()
    elif failure:
        raise failure[0]
    return (None if struck is None else f"{killed[0]} {struck}"), repeated


def _strike(kill: Kill, scenario: Scenario, over: Callable[[], bool], strike: Callable[[], None]) -> str | None:
    """Wait for the moment, and for a victim; None when the run was over before."""
    while not over():
        if (reached := scenario.progress()) >= kill.at:
            time.sleep(kill.later)
            try:
                strike()
            except LookupError:
                time.sleep(0.2)
                continue
            return f"at {reached:.2f}"
        time.sleep(0.1)
    return None
