"""Files for Ray's cluster launcher, by Ray's own schema, and what they need to fit the job they name."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from plad_ray import config
from plad_ray.manifest.checks import unplaced
from plad_ray.manifest.render import tag
from plad_ray.placement import Node, asked

ROOT = Path(__file__).parents[2]
FILES = ("aws", "gcp")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"cluster/{name}.yaml").read_text())


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_it(name: str):
    prepared = prepare_config(read(name))
    validate_config(prepared)
    assert prepared["available_node_types"]["train"]["resources"]["GPU"] == 8
    assert "pip install" not in str(prepared), "everything is in the image"


@pytest.mark.parametrize(
    "change, error",
    [
        ({"max_worker": 3}, jsonschema.ValidationError),
        ({"head_node_type": "haed"}, ValueError),
        ({"max_workers": "nine"}, jsonschema.ValidationError),
        ({"docker": {"image": "x", "user": "root"}}, jsonschema.ValidationError),
    ],
    ids=str,
)
def test_ray_sees_one_wrong_field(change: dict[str, Any], error: type[Exception]):
    good = prepare_config(read("aws"))
    with pytest.raises(error):
        validate_config({**copy.deepcopy(good), **change})


@pytest.mark.parametrize("name", FILES)
def test_image_token_and_head(name: str):
    file = read(name)
    assert file["docker"]["image"].endswith(f":{tag('gpu')}")
    assert "--privileged" not in file["docker"]["run_options"]
    starts = file["head_start_ray_commands"][1], file["worker_start_ray_commands"][1]
    assert all(command.startswith("RAY_AUTH_MODE=token ray start") for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "/home/ray/.ray/auth_token" in file["file_mounts"]
    head = file["available_node_types"][file["head_node_type"]]
    assert head["resources"] == {"CPU": 0} and "spot" not in str(head).lower()
    workers = [t for n, t in file["available_node_types"].items() if n != file["head_node_type"]]
    assert all("spot" in str(t["node_config"]).lower() for t in workers)
    assert sum(t["max_workers"] for t in workers) <= file["max_workers"]
    assert not re.search(r"(AKIA|hf_|sk-)\w{8}", str(file))


@pytest.mark.parametrize("name", FILES)
def test_the_job_it_names_fits(name: str):
    pods = []
    for kind, node in read(name)["available_node_types"].items():
        resources = node["resources"]
        accelerator = next((r.partition(":")[2] for r in resources if ":" in r), None)
        pods += [Node(kind, resources["CPU"], resources.get("GPU", 0), accelerator)] * node.get("max_workers", 0)
    [command] = re.findall(r"plad submit ((?:.*\\\n)*.*)", (ROOT / f"cluster/{name}.yaml").read_text())
    job, *overrides = (word for word in command.split() if word.endswith(".yaml") or "=" in word)
    exp = config.load(ROOT / job, overrides)
    assert all(actor.accelerator for actors in asked(exp).values() for actor in actors), "one kind of GPU for each role"
    assert list(unplaced(pods, exp)) == []
    assert list(unplaced(pods, config.load(ROOT / job, [*overrides, "runtime.train.workers=9"])))
