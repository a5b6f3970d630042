"""docs/SCALING.md: its tables come from benchmarks/scaling.py, and what they predict follows from what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scaling

ROOT = Path(__file__).parents[1]
COSTS = {"driver_ms": 0.5, "prompt_bytes": 2000.0, "prompt_ms": 0.1, "pairs_ms": 0.02, "checkpoint_s": 0.5}


def test_what_is_predicted_follows_from_the_costs():
    wanted = scaling.demand()
    assert wanted.rows_per_s * wanted.hours * 3600 == pytest.approx(2 * scaling.PROMPTS)
    _, _, driver, footers, prompts, numbers, time, _ = scaling.prediction(COSTS)
    assert f"{wanted.rows_per_s:,.0f}" in driver and "| 2,000 |" in driver
    assert f"**breaks**: {2000 / wanted.rows_per_s:.2f}" in driver or f"{2000 / wanted.rows_per_s:.1f} ×" in driver
    assert "200 GB" in prompts and prompts.endswith("5.0 × |")
    assert "781,250 part files" in footers and "4.3 h" in footers
    assert "0.2 GB" in numbers and "3 h" in time  # 10⁸ × 0.12 ms


def test_the_document_has_a_measurement():
    text = scaling.DOCUMENT.read_text()
    assert f"| {scaling.PROMPTS:,} prompts, {scaling.GPUS:,} H100 | needed | there is | |" in text
    assert f"| {scaling.demand().rows_per_s:,.0f} (GPUs busy" in text, "another demand by now: measure again"


@pytest.mark.slow
def test_a_small_cluster_is_measured():
    command = [sys.executable, "-m", "benchmarks.scaling", "--here", "2", "1", "512"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=500)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(COSTS) <= set(found) and min(found[name] for name in COSTS if name != "prompt_bytes") > 0
