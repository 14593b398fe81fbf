"""Batches of readouts that wait, and parts of batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import Acquisitions


@dataclass(slots=True)
class Held:
    """A batch that waits.

    Attributes:
        batch: a copy.
        is_gated: `(n,)`: belongs to the image.
        times_s: `(n,)`.
        start: readouts before this one have gone on.
    """

    batch: Acquisitions
    is_gated: NDArray[np.bool_]
    times_s: NDArray[np.float64]
    start: int = 0


def places(headers: NDArray[np.void]) -> NDArray[np.int64]:
    """Slice and repetition, `(n, 2)`."""
    return np.stack([headers["idx"]["slice"], headers["idx"]["repetition"]], axis=1).astype(np.int64)


def equal_runs(*columns: NDArray[np.generic]) -> Iterator[slice]:
    """Runs of readouts that are equal in every column, each `(n,)` or `(n, m)`."""
    keys = np.column_stack([column.astype(np.int64) for column in columns])
    if len(keys):
        cuts = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
        for start, stop in pairwise([0, *cuts.tolist(), len(keys)]):
            yield slice(start, stop)


def cut(batch: Acquisitions, part: slice, start: int) -> Acquisitions:
    """Readouts of a batch, counted from `start`."""
    part = slice(part.start + start, part.stop + start)
    trajectory = None if batch.trajectory is None else batch.trajectory[part]
    return Acquisitions(batch.headers[part], batch.samples[part], trajectory)


def n_bytes_of(batch: Acquisitions) -> int:
    """Memory of a copy."""
    return batch.samples.nbytes + batch.headers.nbytes + (0 if batch.trajectory is None else batch.trajectory.nbytes)
