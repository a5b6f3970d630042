"""The tables and plots of docs/EVIDENCE.md from the studies that have run here: ``python -m benchmarks.evidence``.

A study's name is its marks' in the document; it runs by ``plad study NAME jobs/studies/NAME.yaml``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import marks
from plad_ray.study.markdown import tables_and_figures
from plad_ray.study.result import StudyResult

DOCUMENT = Path(__file__).parents[1] / "docs/EVIDENCE.md"


def write(study: str, made: Path, document: Path = DOCUMENT) -> None:
    """Put what the folder ``made`` of a study holds into the document, and its plots beside it."""
    result = StudyResult.model_validate_json((made / "result.json").read_text(encoding="utf-8"))
    plots = document.parent / "evidence"
    plots.mkdir(exist_ok=True)
    for figure in result.drawn:
        (plots / f"{study}-{figure.key}.svg").write_bytes((made / f"{figure.key}.svg").read_bytes())
    marks.put(document, study, "\n".join(tables_and_figures(result, "###", f"evidence/{study}-")).strip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, nargs="?", default=Path("runs"), help="of the experiments (default: runs)")
    given = parser.parse_args()
    for study in marks.names(DOCUMENT):
        made = given.store / f"demo-{study}/study-{study}"
        if made.exists():
            write(study, made)
        print(f"{study}: {'written' if made.exists() else 'has not run here, left as it is'}")


if __name__ == "__main__":
    main()
