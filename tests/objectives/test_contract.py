"""What the contract promises: whoever runs objectives never asks which one it is."""

from __future__ import annotations

import re
from pathlib import Path

import plad_ray
from plad_ray.objectives import OBJECTIVES

PACKAGE = Path(plad_ray.__file__).parent


def test_loop_launch_and_pipeline_name_no_method():
    files = [PACKAGE / "pipeline.py", *(PACKAGE / "parts").glob("*.py"), *(PACKAGE / "train").glob("*.py")]
    assert len(files) > 20
    quoted = {f'"{name}"' for name in OBJECTIVES if name != "sft"}  # SFT is also the stage before distillation
    found = {(file.name, text) for file in files for text in re.findall(r'"\w+"', file.read_text()) if text in quoted}
    assert not found
