"""View sharing: a cardiac phase borrows the lines that it lacks from the phases next to it, in a circle.

Off by default, since borrowed lines blur motion; what was borrowed is noted in the images. Lines are borrowed from the
nearest phases that measured them, from both sides when both are as near, and only as they were measured. A phase
without any readout has no group and stays without an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.frame import Group


@dataclass(frozen=True, slots=True)
class _Frame:
    """Views of one phase: `(z, y, coils, x)` k-space and `(z, y)` counts; and the lines that it measured itself."""

    kspace: NDArray[np.complex64]
    counts: NDArray[np.float32]
    is_measured: NDArray[np.bool_]


def share_views(groups: list[Group], n_phases: int, reach: int, min_fraction: float) -> tuple[list[Group], int]:
    """Fill missing lines, in place.

    Args:
        groups: complete together: one phase each, or all phases on the axis `frames`.
        n_phases: phases of a heartbeat.
        reach: how far away, in phases, a line may come from.
        min_fraction: part of the lines of all phases that a group needs afterwards.

    Returns:
        The groups with a note of what was borrowed; and how many were released because they still lack too much.
    """
    places: dict[tuple[int, ...], dict[int, _Frame]] = {}
    for group in groups:
        for number in range(len(group.counts)):
            kspace, counts = group.kspace[number].transpose(1, 2, 0, 3), group.counts[number]
            places.setdefault(_place(group), {})[_phase(group, number)] = _Frame(kspace, counts, counts > 0)
    shared: list[Group] = []
    n_left_out = 0
    for group in groups:
        frames = places[_place(group)]
        every = np.logical_or.reduce([frame.is_measured for frame in frames.values()])
        n_borrowed = sum(_borrow(frames, _phase(group, number), n_phases, reach) for number in range(len(group.counts)))
        has_all = bool((group.counts > 0)[:, every].all())
        if not has_all and (group.counts > 0).sum() < min_fraction * every.sum() * len(group.counts):
            group.release()
            n_left_out += 1
            continue
        if n_borrowed:
            is_complete = has_all and any(other.is_complete for other in groups if _place(other) == _place(group))
            notes = {**group.notes, "ReconViewSharing": f"{n_borrowed} lines"}
            group = replace(group, notes=notes, is_complete=is_complete)
        shared.append(group)
    return shared, n_left_out


def _borrow(frames: dict[int, _Frame], phase: int, n_phases: int, reach: int) -> int:
    """Fill one phase; the number of lines filled."""
    own = frames[phase]
    n_borrowed = 0
    for distance in range(1, min(reach, n_phases // 2) + 1):
        missing = own.counts == 0
        for at in {(phase - distance) % n_phases, (phase + distance) % n_phases}:
            lender = frames.get(at)
            if lender is not None:
                lines = missing & lender.is_measured
                own.kspace[lines] += lender.kspace[lines]
                own.counts[lines] += lender.counts[lines]
        n_borrowed += int(np.count_nonzero(missing & (own.counts > 0)))
    return n_borrowed


def _phase(group: Group, number: int) -> int:
    """The cardiac phase of a frame: those without any line are left out of a group."""
    return int(group.headers["idx"]["phase"][number])


def _place(group: Group) -> tuple[int, ...]:
    return (group.key.encoding, group.key.slice, group.key.contrast, group.key.repetition, group.key.set)
