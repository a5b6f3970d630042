"""Studies: the tables and figures of the paper, and of questions that it left open, by one command each."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from plad_ray.errors import PladError

if TYPE_CHECKING:
    from plad_ray.study.base import Study

#: name -> the module whose STUDY it is
STUDIES = {
    "compare": "plad_ray.study.compare",
    "scaling": "plad_ray.study.scaling",
    "real-pairs": "plad_ray.study.real_pairs",
    "length": "plad_ray.study.length",
    "ablation": "plad_ray.study.ablation",
    "sweep": "plad_ray.study.sweep",
    "calibration": "plad_ray.study.calibration",
    "judge": "plad_ray.study.judge",
    "tax": "plad_ray.study.tax",
    "teacher": "plad_ray.study.teacher",
    "reward": "plad_ray.study.reward",
}


def find(name: str) -> Study[Any]:
    """The study ``name``. Raises PladError for an unknown one."""
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise PladError(f"no study {name}; {hint}studies: {', '.join(STUDIES)}")
    study: Study[Any] = import_module(STUDIES[name]).STUDY
    return study
