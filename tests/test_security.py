"""What SECURITY.md says. (Keys: test_jobs.py greps a whole run for one; manifests: manifest/test_manifest.py.)"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
import yaml

from plad_ray.config import Model, load
from plad_ray.errors import PladError
from plad_ray.models.policy import resolve
from tests.conftest import save_tiny_model

ROOT = Path(__file__).parents[1]
#: what reads a pickle, or runs what it reads
RUNS_CODE = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
CALLS = {"torch.load", "torch.save", "np.load", "numpy.load", "yaml.load", "os.system", "eval", "exec"}


def found(source: str) -> set[str]:
    """Modules and calls of ``source`` that may run foreign data."""
    bad: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            bad |= {a.name for a in node.names} & RUNS_CODE
        elif isinstance(node, ast.ImportFrom):
            bad |= {node.module or ""} & RUNS_CODE
        elif isinstance(node, ast.Call):
            bad |= {ast.unparse(node.func)} & CALLS
            bad |= {"shell=True" for k in node.keywords if k.arg == "shell"}
    return bad


def test_nothing_here_reads_a_pickle_or_runs_what_it_reads():
    files = [p for folder in ("plad_ray", "jobs") for p in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    assert {str(p.relative_to(ROOT)): bad for p in files if (bad := found(p.read_text()))} == {}
    assert found("import pickle\ntorch.load(x)\nrun('ls', shell=True)") == {"pickle", "torch.load", "shell=True"}


def test_remote_code_is_off_in_every_experiment():
    assert Model(path="x").trust_remote_code is False
    for file in ROOT.glob("jobs/*.yaml"):
        if "name" in yaml.safe_load(file.read_text()):
            exp = load(file)
            roles = [role for role in (exp.teacher, exp.student) if role is not None]
            assert not any(role.model.trust_remote_code for role in roles), file


def test_a_pickled_adapter_is_refused(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(PladError, match=r"pickled adapter_model\.bin can run code"):
        resolve(Model(path=str(base), adapter=str(adapter)))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_what_it_names_is_there():
    text, makefile = (ROOT / "SECURITY.md").read_text(), (ROOT / "Makefile").read_text()
    for path in re.findall(r"`(cluster/[\w./]+)`", text):
        assert (ROOT / path).is_file(), path
    for target in re.findall(r"`make (\w+)`", text):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
