"""In which order a simulated scan measures its lines, and with which flags; a table of readouts before any sample.

An edit (`PlanEdit`) changes the table of the whole scan before it is measured: lines repeated or left out, another
order, segments, other flags. Noise is drawn afterwards, for every row of the table anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import AcquisitionFlag
from pipelines.scan_header import CalibrationMode
from pipelines.simulated_protocol import Pattern, Protocol, SliceOrder

PLAN: Final = np.dtype(
    [
        ("frame", "<u2"),
        ("slice", "<u2"),
        ("average", "<u2"),
        ("segment", "<u2"),
        ("partition", "<u2"),
        ("line", "<u2"),
        ("offset", "<i4"),
        ("flags", "<u8"),
        ("is_separate", "?"),
        ("is_reversed", "?"),
    ]
)
"""One readout of the plan. `line` and `partition` are row and plane of the encoded grid, whose k-space centre is at
n//2; `offset` is added to the counter of the line; `is_separate` marks what is not measured for the image grid."""

Plan = NDArray[np.void]
PlanEdit = Callable[[Plan], Plan]


def plan_scan(protocol: Protocol, n_frames: int, n_slices: int, n_y: int) -> Plan:
    """The readouts of a two-dimensional scan in the order of measurement, with their flags.

    Separate calibration lines come before the image lines of the first frame and carry no FIRST or LAST flag.
    """
    plans: list[Plan] = []
    for frame in range(n_frames):
        lines, calibration = choose_lines(protocol, frame, n_y)
        chosen = np.union1d(lines, calibration) if protocol.calibration_mode is CalibrationMode.EMBEDDED else lines
        plan = _loop(protocol, frame, n_slices, chosen)
        if protocol.calibration_mode is CalibrationMode.EMBEDDED and protocol.is_accelerated:
            in_region, in_image = np.isin(plan["line"], calibration), np.isin(plan["line"], lines)
            flag_calibration(plan, in_region, in_image)
        if protocol.is_calibrated_apart and frame == 0:
            slices, rows = (axis.ravel() for axis in np.meshgrid(np.arange(n_slices), calibration, indexing="ij"))
            skipped = protocol.skipped_lines(n_y)
            plans.append(separate_calibration(protocol, slices, np.zeros_like(rows), rows, skipped))
        plans.append(plan)
    return flag_order(np.concatenate(plans), protocol, n_frames)


def flag_calibration(plan: Plan, in_region: NDArray[np.bool_], in_image: NDArray[np.bool_]) -> None:
    """Flag embedded calibration lines: 21 where the image needs them too, else 20."""
    plan["flags"][in_region & in_image] |= AcquisitionFlag.IS_PARALLEL_CALIBRATION_AND_IMAGING.mask
    plan["flags"][in_region & ~in_image] |= AcquisitionFlag.IS_PARALLEL_CALIBRATION.mask


def separate_calibration(
    protocol: Protocol, slices: NDArray[np.intp], partitions: NDArray[np.intp], lines: NDArray[np.intp], skipped: int
) -> Plan:
    """Calibration lines that are measured before the image; external ones count from `calibration_start`.

    `skipped` rows at the start of the grid have no counter.
    """
    plan = np.zeros(len(lines), PLAN)
    plan["slice"], plan["partition"], plan["line"], plan["is_separate"] = slices, partitions, lines, True
    plan["flags"] = AcquisitionFlag.IS_PARALLEL_CALIBRATION.mask
    if protocol.calibration_mode is CalibrationMode.EXTERNAL and len(lines):
        plan["offset"] = protocol.calibration_start - (int(lines.min()) - skipped)
    return plan


def flag_order(plan: Plan, protocol: Protocol, n_frames: int) -> Plan:
    """Set the FIRST and LAST flags of all loops, where the protocol wants any; the plan itself is changed."""
    if not protocol.order_flags:
        return plan
    flag = AcquisitionFlag
    of_image = np.flatnonzero(~plan["is_separate"])
    image = plan[of_image]
    frame, slice_, average = (image[name].astype(np.int64) for name in ("frame", "slice", "average"))
    of_slice = frame << 16 | slice_
    passes = of_slice << 16 | average
    if (image["partition"] != image["partition"][:1]).any():
        _flag_ends(image, passes, flag.FIRST_IN_ENCODE_STEP2, flag.LAST_IN_ENCODE_STEP2)
        planes = passes << 16 | image["partition"].astype(np.int64)
        _flag_ends(image, planes, flag.FIRST_IN_ENCODE_STEP1, flag.LAST_IN_ENCODE_STEP1)
    else:
        _flag_ends(image, passes, flag.FIRST_IN_ENCODE_STEP1, flag.LAST_IN_ENCODE_STEP1)
    _flag_ends(image, passes, flag.FIRST_IN_AVERAGE, flag.LAST_IN_AVERAGE)
    _flag_ends(image, of_slice, flag.FIRST_IN_SLICE, flag.LAST_IN_SLICE)
    slower = np.zeros(len(image), np.int64)
    for counter, values in reversed(protocol.counters_of_frames(n_frames).items()):
        slower = slower << 16 | values[image["frame"]]
        _flag_ends(image, slower, *counter.flags)
    plan[of_image] = image
    plan["flags"][-1] |= flag.LAST_IN_MEASUREMENT.mask
    return plan


def _flag_ends(plan: Plan, keys: NDArray[np.int64], first: AcquisitionFlag, last: AcquisitionFlag) -> None:
    plan["flags"][np.unique(keys, return_index=True)[1]] |= first.mask
    plan["flags"][len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]] |= last.mask


def _loop(protocol: Protocol, frame: int, n_slices: int, lines: NDArray[np.intp]) -> Plan:
    if protocol.slice_order is SliceOrder.SEQUENTIAL:
        slices, averages, rows = np.meshgrid(np.arange(n_slices), np.arange(protocol.averages), lines, indexing="ij")
    else:
        order = np.concatenate([np.arange(0, n_slices, 2), np.arange(1, n_slices, 2)])
        averages, rows, slices = np.meshgrid(np.arange(protocol.averages), lines, order, indexing="ij")
    plan = np.zeros(rows.size, PLAN)
    plan["frame"], plan["slice"], plan["average"], plan["line"] = frame, slices.ravel(), averages.ravel(), rows.ravel()
    return plan


def choose_lines(protocol: Protocol, frame: int, n_y: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows measured for the image, and rows of the calibration region."""
    n_lines, skipped = protocol.encoded_lines(n_y), protocol.skipped_lines(n_y)
    rows = np.arange(skipped, n_lines)
    is_interleaved = protocol.calibration_mode is CalibrationMode.INTERLEAVED
    calibration = _region(rows, n_lines, 0 if is_interleaved else protocol.calibration_lines)
    if not protocol.is_accelerated:
        return rows, calibration
    if protocol.pattern is Pattern.REGULAR:
        shift = frame if is_interleaved else 0
        return rows[(rows - n_lines // 2 - shift) % protocol.acceleration == 0], calibration
    rng = np.random.default_rng([protocol.seed, 1, frame])
    others = np.setdiff1d(rows, calibration)
    wanted = min(max(round(len(rows) / protocol.acceleration) - len(calibration), 0), len(others))
    density = (1 - np.abs(others - n_lines // 2) / (n_lines // 2 + 1)) ** 2
    drawn = rng.choice(others, wanted, replace=False, p=density / density.sum()) if wanted else others[:0]
    return np.union1d(calibration, drawn), calibration


def _region(rows: NDArray[np.intp], n_lines: int, n_calibration: int) -> NDArray[np.intp]:
    first = n_lines // 2 - n_calibration // 2
    return rows[(rows >= first) & (rows < first + n_calibration)]


# -- edits -----------------------------------------------------------------------------------------------------------


def repeat_lines(lines: Sequence[int], times: int, *, as_averages: bool = True) -> PlanEdit:
    """Measure these rows `times` times in all, one after the other, as further averages or with equal counters."""

    def edit(plan: Plan) -> Plan:
        is_repeated = np.isin(plan["line"], lines) & ~plan["is_separate"]
        counts = np.where(is_repeated, times, 1)
        repeated = np.repeat(plan, counts)
        turn = np.arange(len(repeated)) - np.repeat(np.cumsum(counts) - counts, counts)
        if as_averages:
            repeated["average"] += turn.astype(np.uint16)
        repeated["flags"][turn > 0] &= ~np.uint64(_FIRST_FLAGS)
        repeated["flags"][turn < np.repeat(counts, counts) - 1] &= ~np.uint64(_LAST_FLAGS)
        return repeated

    return edit


def leave_out(lines: Sequence[int], *, frame: int | None = None) -> PlanEdit:
    """Never measure these rows, in one frame or in all."""

    def edit(plan: Plan) -> Plan:
        is_out = np.isin(plan["line"], lines) & ~plan["is_separate"]
        kept = ~(is_out if frame is None else is_out & (plan["frame"] == frame))
        return np.asarray(plan[kept])

    return edit


def in_segments(n_segments: int) -> PlanEdit:
    """Measure the lines of each slice in `n_segments` shots, every n-th line in each, and count them as segments."""

    def edit(plan: Plan) -> Plan:
        plan = plan.copy()
        keys = np.stack([plan[name].astype(np.int64) for name in ("frame", "slice", "average", "partition")], axis=1)
        for key in np.unique(keys[~plan["is_separate"]], axis=0):
            rows = np.flatnonzero((keys == key).all(axis=1) & ~plan["is_separate"])
            shots = np.arange(len(rows)) % n_segments
            flags = plan["flags"][rows].copy() & np.uint64(_LOOP_FLAGS)
            ordered = plan[rows[np.argsort(shots, kind="stable")]]
            ordered["segment"] = np.sort(shots)
            ordered["flags"] = (ordered["flags"] & ~np.uint64(_LOOP_FLAGS)) | flags
            plan[rows] = ordered
        return plan

    return edit


def echoes_innermost(plan: Plan) -> Plan:
    """Measure each line in all frames before the next line, as a multi-echo sequence does; loop flags move along."""
    order = np.lexsort((plan["frame"], _first_seen(plan), ~plan["is_separate"]))
    return np.asarray(plan[order])


def _first_seen(plan: Plan) -> NDArray[np.intp]:
    """For each row, where the same line was planned in the first frame that has it."""
    keys = np.stack([plan[name].astype(np.int64) for name in ("slice", "average", "partition", "line")], axis=1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.ravel()])


_FIRST_FLAGS: Final = sum(1 << (flag - 1) for flag in range(1, 19, 2))
_LAST_FLAGS: Final = sum(1 << (flag - 1) for flag in range(2, 19, 2)) | AcquisitionFlag.LAST_IN_MEASUREMENT.mask
_LOOP_FLAGS: Final = _FIRST_FLAGS | _LAST_FLAGS
"""FIRST_IN_* and LAST_IN_* of every counter, and LAST_IN_MEASUREMENT: they belong to a place in the order."""
