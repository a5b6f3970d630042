"""The image: by hadolint, and by what a manifest expects of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from plad_ray.manifest import values
from plad_ray.manifest.render import image_name, manifest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster/Dockerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"


def lint(file: Path) -> str:
    result = subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True)
    return result.stdout + result.stderr


def test_hadolint_finds_nothing(tmp_path):
    assert lint(DOCKERFILE) == ""
    worse = tmp_path / "Dockerfile"
    worse.write_text("FROM python:latest\nUSER root\nRUN cd /tmp && sudo pip install ray\n")
    assert {"DL3007", "DL3004", "DL3002"} <= set(re.findall(r"DL\d+", lint(worse)))


def test_it_installs_the_pinned_extras_and_runs_as_the_user_of_the_manifests():
    text = DOCKERFILE.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"cpu", "gpu", "launcher"} <= set(extras)
    assert '".[${EXTRA},launcher]"' in text
    assert all("==" in requirement for name in ("cpu", "gpu") for requirement in extras[name])
    assert re.search(r"^ARG BASE=docker\.io/library/python:3\.11\.\d+-", text, flags=re.MULTILINE), "pinned base"
    [user] = re.findall(r"^USER (\d+):\d+$", text, flags=re.MULTILINE)
    rendered = yaml.safe_load_all(manifest(ROOT / "cluster/kuberay/demo.yaml"))
    head = next(d for d in rendered if d["kind"] == "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["template"]["spec"]["securityContext"]["runAsUser"] == int(user)
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", text, flags=re.MULTILINE)
    assert all((ROOT / source).exists() for line in copied for source in line.split())
    allowed = (ROOT / "cluster/Dockerfile.dockerignore").read_text()
    assert all(f"!{source}\n" in allowed for line in copied for source in line.split())


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("file", ["values.yaml", "demo.yaml"])
def test_make_image_builds_what_the_manifests_name(file: str):
    wanted = values.load(ROOT / "cluster/kuberay" / file)
    result = subprocess.run(
        ["make", "-n", "image", f"REPOSITORY={wanted.image.repository}", f"EXTRA={wanted.image.variant}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert f"--tag {image_name(wanted)}" in result.stdout, result.stdout + result.stderr
    assert "--sbom=true" in result.stdout
