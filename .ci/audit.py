"""`make audit`: known vulnerabilities of what is installed beside this Python, without those that advisories.txt accepts.

Exit status: 0 none, 1 some, 3 nobody could be asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ACCEPTED = Path(__file__).with_name("advisories.txt")
PIP_AUDIT = [str(Path(sys.executable).with_name("uv")), "tool", "run", "pip-audit==2.10.1"]
#: has advisories. Where it is found clean nobody knows of any: an index mirror answers pip-audit, too, and a package that it
#: does not know counts as skipped, which is no failure.
CANARY = "jinja2==2.4.1"
TRIED_FOR = 900  # seconds
NONE, SOME, NOT_ASKED = 0, 1, 3


class NotAskedError(Exception):
    """Why."""


def main() -> int:
    ignored = accepted(ACCEPTED.read_text(encoding="utf-8"))
    try:
        if not vulnerabilities(report_of_canary()):
            raise NotAskedError(f"no advisories are served here: none is known of {CANARY}, which has some")
        report = ask("--skip-editable", "--path", *site_packages(), *(f"--ignore-vuln={name}" for name in ignored))
    except NotAskedError as why:
        print(f"audit: it did NOT happen: {why}")
        return NOT_ASKED
    found = vulnerabilities(report)
    for line in found:
        print(f"audit: {line}")
    skipped = [package["name"] for package in report if "skip_reason" in package]
    unknown = f", {len(skipped)} that PyPI does not know ({', '.join(skipped)})" if skipped else ""
    print(
        f"audit: {len(report) - len(skipped)} packages{unknown}, {len(found)} vulnerabilities, {len(ignored)} accepted"
    )
    return SOME if found else NONE


def accepted(text: str) -> dict[str, str]:
    """The reason by the id of an advisory. Raises SystemExit for a line without one."""
    reasons = {}
    for line in text.splitlines():
        name, _, reason = line.partition(" ")
        if name and not name.startswith("#"):
            reasons[name] = reason.strip()
            if not reasons[name]:
                raise SystemExit(f"{ACCEPTED.name}: {name} has no reason; write why it is accepted behind it")
    return reasons


def vulnerabilities(report: list[dict[str, Any]]) -> list[str]:
    """A line for each: package, id, other ids, what mends it."""
    lines = []
    for package in report:
        for known in package.get("vulns", ()):
            names = " ".join([known["id"], *known["aliases"]])
            mended = ", ".join(known["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {names} (mended in {mended})")
    return lines


def report_of_canary() -> list[dict[str, Any]]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(CANARY)
        file.flush()
        return ask("--no-deps", "--disable-pip", "--requirement", file.name)


def ask(*what: str) -> list[dict[str, Any]]:
    """pip-audit's report, an entry a package. Raises NotAskedError."""
    command = [*PIP_AUDIT, *what, "--format=json", "--progress-spinner=off"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TRIED_FOR)
    except subprocess.TimeoutExpired:
        raise NotAskedError(f"pip-audit did not end within {TRIED_FOR} s") from None
    try:
        report: list[dict[str, Any]] = json.loads(ran.stdout)["dependencies"]
    except json.JSONDecodeError:
        said = [line for line in ran.stderr.splitlines() if line.strip()] or [f"pip-audit ended with {ran.returncode}"]
        raise NotAskedError(next((line for line in said if line.startswith("ERROR")), said[-1])) from None
    return report


def site_packages() -> list[str]:
    return [path for path in sys.path if path.endswith("site-packages")]


if __name__ == "__main__":
    sys.exit(main())
