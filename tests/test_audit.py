"""`make audit`, with a stand-in that answers as pip-audit 2.10 does, and the workflow that asks it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CANARY = {"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "PYSEC-1", "aliases": [], "fix_versions": ["3.0"]}]}
CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "x", "version": "1.0", "vulns": [{"id": "PYSEC-2", "aliases": ["CVE-2"], "fix_versions": ["1.1"]}]}
SKIPPED = {"name": "jinja2", "skip_reason": "Dependency not found on PyPI and could not be audited: jinja2 (2.4.1)"}
#: a string is what standard error says; what is ignored is left out of the answer
STAND_IN = """
import json, sys
answers = json.loads({answers!r})
canary, installed = answers
answer = canary if "--requirement" in sys.argv else installed
if isinstance(answer, str):
    sys.exit(answer)
for package in answer:
    package["vulns"] = [v for v in package.get("vulns", []) if "--ignore-vuln=" + v["id"] not in sys.argv]
print(json.dumps({{"dependencies": answer, "fixes": []}}))
sys.exit(any(package["vulns"] for package in answer))
"""


@pytest.fixture
def audit(monkeypatch, tmp_path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ACCEPTED", tmp_path / "advisories.txt")
    module.ACCEPTED.write_text("# a comment\n\n")
    return module


def asked(audit: ModuleType, canary: Any, installed: Any) -> int:
    script = audit.ACCEPTED.with_name("pip_audit.py")
    script.write_text(STAND_IN.format(answers=json.dumps([canary, installed])))
    audit.PIP_AUDIT = [sys.executable, str(script)]
    return audit.main()


def test_only_a_vulnerability_that_is_not_accepted_fails(audit, capsys):
    assert asked(audit, [CANARY], [CLEAN]) == 0
    assert capsys.readouterr().out == "audit: 1 packages, 0 vulnerabilities, 0 accepted\n"
    assert asked(audit, [CANARY], [CLEAN, BAD]) == 1
    assert "audit: x 1.0: PYSEC-2 CVE-2 (mended in 1.1)\n" in capsys.readouterr().out
    audit.ACCEPTED.write_text("PYSEC-2 nothing here reads such files\n")
    assert asked(audit, [CANARY], [CLEAN, BAD]) == 0
    assert capsys.readouterr().out.endswith("0 vulnerabilities, 1 accepted\n")
    audit.ACCEPTED.write_text("PYSEC-2\n")
    with pytest.raises(SystemExit, match="PYSEC-2 has no reason"):
        asked(audit, [CANARY], [CLEAN, BAD])


@pytest.mark.parametrize(
    ("canary", "installed", "why"),
    [
        ([SKIPPED], [CLEAN], "no advisories are served here: none is known of jinja2==2.4.1, which has some"),
        (
            "ERROR:pip_audit._cli:Could not connect to PyPI's feed\nTip: try",
            [],
            "ERROR:pip_audit._cli:Could not connect",
        ),
        ("Traceback\n  …\nConnectionError: no such host", [], "ConnectionError: no such host"),
        ([CANARY], "Traceback\n  …\nReadTimeout: read timed out", "ReadTimeout: read timed out"),
    ],
)
def test_nobody_to_ask_is_one_line_and_no_vulnerability(audit, capsys, canary, installed, why):
    assert asked(audit, canary, installed) == 3
    out = capsys.readouterr().out
    assert out.startswith(f"audit: it did NOT happen: {why}") and out.count("\n") == 1


def test_every_accepted_advisory_has_its_reason(audit):
    audit.accepted((ROOT / ".ci/advisories.txt").read_text())


def test_the_workflow_may_only_read_and_runs_what_is_there():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow[True]) == {"push", "pull_request", "schedule"}  # YAML 1.1 reads `on` as a truth value
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert not any("permissions" in job for job in workflow["jobs"].values())
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    commands = [step["run"].split() for step in steps if "run" in step]
    assert [".ci/run"] in commands and ["make", "audit"] in commands
    makefile = (ROOT / "Makefile").read_text()
    for command, *targets in commands:
        assert command == "make" or os.access(ROOT / command, os.X_OK), command
        assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets), targets
