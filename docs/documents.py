"""MkDocs hook: takes documents that lie elsewhere in the repository into the site, with their plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
#: where in the site -> where in the repository
DOCUMENTS = {
    "measurements/evidence.md": "docs/EVIDENCE.md",
    "measurements/speed.md": "benchmarks/RESULTS.md",
    "measurements/scale.md": "docs/SCALING.md",
}


def on_files(files: Any, config: Any) -> Any:
    plots = {f"measurements/evidence/{plot.name}": plot for plot in ROOT.glob("docs/evidence/*.svg")}
    for place, file in {**DOCUMENTS, **plots}.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / file)))
    return files
