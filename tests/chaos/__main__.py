"""Random kills, by seed: ``make chaos``, ``make chaos SEEDS=0-9``, ``python -m tests.chaos 17``."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.machines import environment

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the cluster is taken down
    with tempfile.TemporaryDirectory(prefix="plad-chaos-", ignore_cleanup_errors=True) as name:
        Path(name, "tmp").mkdir()
        os.environ.update(environment(Path(name)))  # before Ray is loaded, which reads it once
        from tests.chaos.series import main

        sys.exit(main(Path(name)))
