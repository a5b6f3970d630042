"""Which batches a model takes: chosen once a run, by its architecture."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PretrainedConfig

from plad_ray.models.load import is_seq2seq
from plad_ray.models.sampling import decoder_start
from plad_ray.train.layout import Batch, Row, concatenate
from plad_ray.train.seq2seq import encode_decode

#: (rows, chunks) to a batch
Collate = Callable[[list[Row], int], Batch]


def collate_for(config: PretrainedConfig, pad: int) -> Collate:
    """What turns rows into batches of a model with ``config``; ``pad`` fills tensors and is never read."""
    if is_seq2seq(config):
        start = decoder_start(config)
        return lambda rows, chunks: encode_decode(rows, start, pad, chunks)
    return lambda rows, chunks: concatenate(rows, pad, chunks)
