"""From the configuration to trackers; their packages are imported here alone, and only those asked for."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from plad_ray.config import Track
from plad_ray.errors import PladError
from plad_ray.track.base import Feed, Line, Subject, Trackers

logger = logging.getLogger(__name__)


def check(track: Track) -> None:
    """PladError where a tracker's package is missing, naming the extra to install, or the key of an online W&B."""
    for name in ("mlflow", "wandb"):
        if getattr(track, name) is not None and find_spec(name) is None:
            raise PladError(
                f"runtime.track.{name}: the package {name} is not installed; pip install 'plad-ray[{name}]', on the nodes "
                f"that train, or leave runtime.track.{name} out"
            )
    if track.wandb is not None and track.wandb.mode == "online" and not _wandb_key():
        raise PladError(
            "runtime.track.wandb: there is no key to log in with; set WANDB_API_KEY (or `wandb login`) where training runs, "
            "or runtime.track.wandb.mode=offline, which writes files for `wandb sync`"
        )


def _wandb_key() -> bool:
    """Whether W&B finds a key: in the environment, or in the netrc file where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def trackers(track: Track, subject: Subject, lines: Sequence[Line] = ()) -> Trackers:
    """Those that ``track`` asks for. ``lines``: what a resumed run has logged already."""
    asked = {"tensorboard": track.tensorboard or None, "mlflow": track.mlflow, "wandb": track.wandb}
    return Trackers(
        feed for name, settings in asked.items() if settings and (feed := _feed(name, settings, subject, len(lines)))
    )


def _feed(name: str, settings: Any, subject: Subject, sent: int) -> Feed | None:
    try:
        kind = import_module(f"plad_ray.track.{name}").TRACKER
    except ImportError as error:  # on this node; the one that started the run was checked
        logger.warning("runtime.track.%s: %s. Training goes on without it.", name, error)
        return None
    return Feed(partial(kind, subject, settings), kind.name, kind.errors, sent)
