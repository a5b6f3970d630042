"""A store whose disk fills up in the middle of a run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from plad_ray.artifacts import Store
from tests.chaos.scenarios import whole_experiment
from tests.conftest import save_tiny_model
from tests.machines import ROOT, UNSHARE, can_be_apart

#: mount a small disk, run, give it room, run again, and look before it is gone with this process
SCRIPT = """
mount -t tmpfs -o size=200k none "$1"
"$2" -m plad_ray run "$3" > "$4/first" 2>&1; echo $? > "$4/code"
mount -o remount,size=200m "$1"
"$2" -m plad_ray run "$3" > "$4/second" 2>&1; echo $? >> "$4/code"
find "$1" -name manifest.json -o -name ".writing-*" -o -name lease.json > "$4/left"
"""


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.timeout(600)
def test_a_full_disk_is_told_and_the_same_command_goes_on_once_there_is_room(tmp_path):
    if not can_be_apart():
        pytest.skip("no mount namespaces here")
    disk = tmp_path / "disk"
    disk.mkdir()
    teacher, student = (save_tiny_model(tmp_path / name, seed=seed) for name, seed in (("teacher", 5), ("student", 0)))
    file = whole_experiment(Store(str(disk)), tmp_path, teacher, student)
    command = [*UNSHARE, "sh", "-c", SCRIPT, "sh", str(disk), sys.executable, str(file), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500)
    first, second = ((tmp_path / name).read_text() for name in ("first", "second"))
    assert (tmp_path / "code").read_text().split() == ["2", "0"], first[-3000:] + second[-3000:]
    assert f": a disk is full: that of the store ({disk})" in first and "Traceback" not in first
    left = (tmp_path / "left").read_text().split()
    assert left and all(name.endswith("manifest.json") for name in left)
