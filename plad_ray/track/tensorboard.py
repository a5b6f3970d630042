"""TensorBoard event files, by tensorboardX, which Ray Tune brings."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tensorboardX import SummaryWriter

from plad_ray.artifacts import Store
from plad_ray.track.base import Line, Subject

FOLDER = "tensorboard"


class TensorBoard:
    """``<store>/tensorboard/<artifact>``, beside the artifacts: ``tensorboard --logdir <store>/tensorboard`` shows all runs.

    In a store that is no local folder, the files are written here and uploaded at the end.
    """

    name = "TensorBoard"
    errors = (OSError,)

    def __init__(self, subject: Subject, settings: bool):
        self.store, self.place = Store(subject.store), f"{FOLDER}/{subject.artifact}"
        self.temporary = None if self.store.local else tempfile.TemporaryDirectory(prefix="plad-tensorboard-")
        self.folder = Path(self.temporary.name if self.temporary else self.store.path(self.place))
        # a resumed run repeats the steps after its checkpoint: the ones of the run that died are taken back
        purge = subject.start + 1 if subject.start else None
        self.writer = SummaryWriter(str(self.folder), purge_step=purge, filename_suffix=f".{subject.start}")

    def log(self, lines: Sequence[Line]) -> None:
        for line in lines:
            for metric, value in line.items():
                if metric != "step":
                    self.writer.add_scalar(metric, value, int(line["step"]))
        self.writer.flush()

    def close(self, finished: bool) -> None:
        self.writer.close()
        if self.temporary is not None:
            self.store.upload(self.folder, self.place)
            self.temporary.cleanup()


TRACKER = TensorBoard
