"""Counts over columns of text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def count_words(texts: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Whitespace-separated words of each text, float [N]; NaN where the text is null."""
    trimmed = pc.utf8_trim_whitespace(texts)
    pieces = pc.list_value_length(pc.utf8_split_whitespace(trimmed))
    words = pc.if_else(pc.equal(trimmed, ""), 0, pieces)
    return to_floats(words)


def to_floats(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A numeric or boolean column as float64 [N], NaN where null."""
    column = pc.cast(values, pa.float64())
    return np.asarray(pc.fill_null(column, float("nan")).to_numpy(zero_copy_only=False), dtype=np.float64)
