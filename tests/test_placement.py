"""What has room on a cluster, what has to wait, and engines that take turns on the same GPUs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from plad_ray import cluster, preview
from plad_ray.cli import app
from plad_ray.config import load
from plad_ray.errors import PladError
from plad_ray.pipeline import plan
from plad_ray.placement import Actor, Node, asked, fits

DEMO = Path(__file__).parents[1] / "jobs/demo.yaml"
GPUS = [
    "runtime.teacher={replicas: 4, gpus: 2, cpus: 1, accelerator_type: L4}",
    "runtime.student={replicas: 2, gpus: 0.5, cpus: 1}",
    "runtime.train={workers: 2, gpus_per_worker: 1, accelerator_type: A100}",
]


def shown(exp, now: list[Node], most: list[Node]) -> dict[str, str]:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    console.print(preview.placement(exp, list(plan(exp).stages.values()), now, most))
    text = console.file.getvalue()
    return {"title": text.splitlines()[1]} | {
        word: line for line in text.splitlines() for word in line.split() if word.startswith("runtime.")
    }


def test_every_role_is_told_what_it_has_room_for_and_why_not_for_more():
    exp = load(DEMO, GPUS)
    now = [Node("a", 8, 4, "L4"), Node("b", 8, 1, "A100")]
    lines = shown(exp, now, now)
    assert lines["title"].startswith("placement on 2 nodes: 16 CPUs, 4 L4, 1 A100")
    teacher, student, train = (lines[f"runtime.{role}"] for role in ("teacher", "student", "train"))
    assert "4 × (2 L4 GPUs, 1 CPUs)" in teacher and "2; 2 pending for ever: there are 4 L4 GPUs" in teacher
    assert "2 × (0.5 GPUs, 1 CPUs)" in student and student.rstrip().endswith("all")
    assert "1; 1 pending for ever: there are 1 A100 GPUs" in train
    grown = shown(exp, now, [*now, *now])
    assert "2; 2 pending until the autoscaler adds nodes" in grown["runtime.teacher"]
    none = shown(exp, [Node("a", 8, 0)], [Node("a", 8, 0)])
    assert "0; 4 pending for ever: there is no L4 GPU" in none["runtime.teacher"]
    narrow = [Node("a", 0.5, 8, "L4"), Node("b", 8, 8, "A100")]
    assert "no node with such GPUs has 1 CPUs" in shown(exp, narrow, narrow)["runtime.teacher"]
    small = [Node("a", 8, 1, "L4")] * 9
    assert "no node has more than 1 L4 GPUs" in shown(exp, small, small)["runtime.teacher"]


def test_roles_that_take_turns_do_not_add_up():
    together = load(DEMO, [*GPUS, "runtime.student={replicas: 8, gpus: 1, cpus: 1}"])
    turns = load(
        DEMO, [*GPUS, "runtime.student={replicas: 8, gpus: 1, cpus: 1}", "runtime.colocate=[teacher, student]"]
    )
    nodes = [Node("a", 32, 8, "L4"), Node("b", 8, 2, "A100")]
    assert [fit.missing for fit in fits(nodes, asked(together))] == [0, 6, 0, 0]
    assert [(fit.stage, fit.missing) for fit in fits(nodes, asked(turns))] == [
        ("generation (teacher)", 0),
        ("generation (student)", 0),
        ("scoring", 0),
        ("training", 0),
    ]
    assert (plan(together).stages["responses"].gpus, plan(turns).stages["responses"].gpus) == (16, 8)
    assert plan(together).stages["responses"].digest == plan(turns).stages["responses"].digest
    with pytest.raises(PladError, match=r"runtime.colocate: .*\[teacher, student\]"):
        load(DEMO, ["runtime.colocate=[teacher]"])


def test_a_reward_model_has_a_gpu_for_each_of_the_students_engines():
    exp = load(DEMO, [*GPUS, "scorer={name: classifier, model: org/reward}"])
    scoring = [fit for fit in fits([Node("a", 8, 1, "L4")], asked(exp)) if fit.stage == "scoring"]
    assert [(f"{fit.actor}", fit.actor.key, fit.wanted, fit.placed) for fit in scoring] == [
        ("(1 GPUs, 0.5 CPUs)", "runtime.student", 2, 1)
    ]
    assert asked(load(DEMO, GPUS))["scoring"] == [Actor("scorer", 0.5, 0)]
    typed = load(
        DEMO, ["runtime.student={gpus: 1, accelerator_type: L4}", "scorer={name: classifier, model: org/reward}"]
    )
    assert asked(typed)["scoring"] == [Actor("runtime.student", 0.5, 1, "L4")]


def test_nodes_of_a_live_cluster_and_those_that_its_autoscaler_may_add(ray_session):
    from ray.core.generated import autoscaler_pb2
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    [node] = cluster.nodes()
    assert (node.cpus, node.gpus) == (ray_session.cluster_resources()["CPU"], 0) and cluster.largest() == [node]
    config = autoscaler_pb2.ClusterConfig()
    group = config.node_group_configs.add(name="teacher", max_count=2)
    group.resources.update({"CPU": 24, "GPU": 2, "accelerator_type:H100": 1})
    place = ray_session._raylet
    key = place.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, place.GCS_AUTOSCALER_STATE_NAMESPACE
    _internal_kv_put(key[0], config.SerializeToString(), namespace=key[1])
    try:
        assert cluster.largest() == [Node("teacher", 24, 2, "H100")] * 2
    finally:
        _internal_kv_del(key[0], namespace=key[1])


def test_a_dry_run_on_a_live_cluster_says_what_has_no_room(ray_session, tmp_path):
    address = ray_session.get_runtime_context().gcs_address
    more = [f"runtime.ray_address={address}", f"runtime.store={tmp_path / 'runs'}", "runtime.teacher.gpus=2"]
    result = CliRunner().invoke(app, ["run", str(DEMO), "--dry-run", *more], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    lines = {line.split()[1]: line for line in result.output.splitlines() if " runtime." in line}
    assert "0; 1 pending for ever: there is no GPU" in lines["runtime.teacher"]
    assert lines["runtime.train"].split()[-1] == "all"
