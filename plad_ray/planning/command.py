"""What ``plad plan`` does."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from plad_ray.config import Experiment
from plad_ray.errors import PladError
from plad_ray.planning import hardware
from plad_ray.planning.plan import Forecast, forecast, sizes_of
from plad_ray.planning.show import show


@dataclass(frozen=True)
class Given:
    """The command's options."""

    on: str = "h100"
    prompts: int | None = None
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    configs: tuple[str, ...] = ()
    price: float | None = None


def plan(exp: Experiment, given: Given, as_json: bool) -> None:
    """Print the forecast. Raises PladError for what is not known on this machine."""
    found = made(exp, given)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    from plad_ray.running import make_console

    show(found, make_console())


def made(exp: Experiment, given: Given) -> Forecast:
    gpu = hardware.device(given.on)
    if given.price is not None:
        gpu = replace(gpu, price=given.price)
    sizes = sizes_of(exp, given.prompts, given.prompt_tokens, given.response_tokens)
    return forecast(exp, gpu, sizes, _configs(exp, given.configs))


def _configs(exp: Experiment, pairs: tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for pair in pairs:
        role, _, file = pair.partition("=")
        if role not in ("teacher", "student") or not Path(file).is_file():
            raise PladError(f"--config {pair}: give teacher=FILE or student=FILE, where FILE is a config.json")
        found[role] = Path(file)
    return found
