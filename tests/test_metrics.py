"""Progress as metrics: what Ray's endpoint serves, and what the dashboard asks for."""

from __future__ import annotations

import io
import json
import re
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from plad_ray.metrics import METRICS, tag, values
from plad_ray.progress import Board, Line

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "cluster/grafana/plad_ray.json").read_text())
#: where Ray and vLLM declare the names of theirs
RAY = "dashboard/modules/reporter/reporter_agent.py", "dashboard/modules/metrics/dashboards/default_dashboard_panels.py"
VLLM = "v1/metrics/loggers.py"


def source(package: str, file: str) -> str:
    """A file of an installed package, which is not imported for it."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / file).read_text()


def queries() -> dict[str, list[str]]:
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in DASHBOARD["panels"]}


def names(text: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", text))


def test_the_dashboard_asks_for_metrics_that_exist():
    asked = set().union(*(names(expr) for exprs in queries().values() for expr in exprs))
    asked |= names(DASHBOARD["templating"]["list"][1]["query"])
    ours = {f"ray_{name}" for name in METRICS}
    assert ours <= asked, "every metric is shown"
    of_vllm = {f"ray_vllm_{name}" for name in re.findall(r'name="vllm:(\w+)"', source("vllm", VLLM))}
    of_vllm |= {f"{name}_total" for name in of_vllm}  # counters
    of_ray = "".join(source("ray", file) for file in RAY)
    unknown = {name for name in asked - ours - of_vllm if name.removeprefix("ray_") not in of_ray}
    assert unknown == set()


def test_panels_are_laid_out_side_by_side():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({(p["x"], p["y"]) for p in places}) == len(places) and all(p["x"] + p["w"] <= 24 for p in places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_any_name_can_be_a_tag():
    from ray.util.metrics import Gauge

    assert tag("distill · seed 0") == "distill - seed 0" and tag("größe") == "gr\\xf6\\xdfe"
    gauge = Gauge("plad_test", "of a test", tag_keys=("stage",))
    gauge.set(1.0, {"stage": tag("größe · seed 0")})
    with pytest.raises(UnicodeEncodeError):  # else ``tag`` has become superfluous
        gauge.set(1.0, {"stage": "größe"})


def test_what_a_report_says():
    line = Line(gpus=4)
    line.update(10, 100, "rows", {"tokens_per_s": 50.0, "engines": "starting"})
    line.started, line.first = time.time() - 1800, (time.time() - 20, 10)
    line.update(50, 100, "rows", {"quarantined": 2})
    said = values(line)
    assert (said["plad_stage_done"], said["plad_stage_total"], said["plad_stage_quarantined"]) == (50, 100, 2)
    assert said["plad_stage_per_second"] == pytest.approx(2, rel=0.01)
    assert said["plad_stage_eta_seconds"] == pytest.approx(25, rel=0.01)
    assert said["plad_stage_gpu_hours"] == pytest.approx(2, rel=0.01)
    assert said["plad_stage_tokens_per_second"] == 50 and "plad_stage_loss" not in said
    assert set(said) <= set(METRICS)
    assert "tokens/s 50" in line.text() and "GPU hours 2" in line.text()


@pytest.mark.slow  # Ray reports every 10 s
def test_rays_endpoint_serves_them(ray_session):
    [node] = [n for n in ray_session.nodes() if n["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with Board(Console(file=io.StringIO()), run="scraped", gpus={"distill": 2}) as board:
        report = board.reporter("distill")
        report(3, 9, "steps", loss=0.25, tokens_per_s=70.0)
        deadline, served = time.time() + 60, ""
        while 'stage="distill"' not in served and time.time() < deadline:
            time.sleep(2)
            served = urllib.request.urlopen(address, timeout=10).read().decode()
        board.ended("distill", True)
    mine = {
        line.partition("{")[0]: (line.partition("{")[2].partition("}")[0], float(line.rpartition(" ")[2]))
        for line in served.splitlines()
        if 'run="scraped"' in line
    }
    assert mine["ray_plad_stage_done"][1] == 3 and mine["ray_plad_stage_total"][1] == 9
    assert mine["ray_plad_stage_loss"][1] == 0.25 and mine["ray_plad_stage_tokens_per_second"][1] == 70
    assert mine["ray_plad_stage_gpu_hours"][1] > 0
    assert {'stage="distill"', 'unit="steps"'} <= set(mine["ray_plad_stage_done"][0].split(","))
    assert "ray_object_store_memory" in served
