"""Angles of spokes whose trajectory the stream does not carry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.assembly.assembly import make_assembly
from pipelines.assembly.frame import Group, Grouping
from pipelines.errors import AssemblyError
from pipelines.mrd import AcquisitionFlag
from pipelines.scan_header import TrajectoryType
from pipelines.trajectory import GOLDEN_ANGLE_DEG

Streams = Any
F = AcquisitionFlag
N_SPOKES = 8


def scan(streams: Streams, kind: str = "spiral", *, n: int | None = N_SPOKES, **options: Any) -> Any:
    limits = {} if n is None else {"kspace_encode_step_1": (0, n - 1, n // 2)}
    return streams.scan(limits=limits | options.pop("limits", {}), trajectory=TrajectoryType(kind), **options)


def spokes(streams: Streams, numbers: Any = range(N_SPOKES), **options: Any) -> list[Any]:
    return [streams.readout(n, **({"samples": 10, "dimensions": 2, "center": 0} | options)) for n in numbers]


def angles_deg(group: Group) -> Any:
    """Angle of every row by its last sample, relative to the centre."""
    assert group.trajectory is not None
    last = group.trajectory[..., -1, :].astype(np.float64)
    return np.rad2deg(np.arctan2(last[..., 1], last[..., 0]))


def same_angles(found: Any, expected: Any) -> bool:
    return bool(np.allclose(np.exp(1j * np.deg2rad(found)), np.exp(1j * np.deg2rad(expected)), atol=1e-4))


def test_uniform_radial_angles_are_computed_from_the_counter(streams: Streams):
    order = [5, 0, 3, 1, 2, 7, 6, 4]
    readouts = spokes(streams, order, dimensions=0, samples=6, center=3)
    (group,), _ = streams.assemble(scan(streams, "radial"), readouts, finish=False)
    assert same_angles(angles_deg(group)[0], 180 / N_SPOKES * np.array(order))
    np.testing.assert_allclose(group.trajectory[0, 1, :, 0], (np.arange(6) - 3) / 6, atol=1e-6)
    assert float(np.abs(group.trajectory).max()) == pytest.approx(0.5)


def test_golden_angles_follow_the_counter_over_repetitions(streams: Streams):
    limits = {"kspace_encode_step_1": (10, 25, 18), "repetition": (0, 1, 0)}
    header = streams.scan(limits=limits, trajectory=TrajectoryType.GOLDENANGLE)
    readouts = [
        streams.readout(10 + n, *([F.LAST_IN_REPETITION] if n % 8 == 7 else []), samples=6, repetition=n // 8)
        for n in range(16)
    ]
    groups, _ = streams.assemble(header, readouts)
    found = np.concatenate([angles_deg(group)[0] for group in groups])
    assert same_angles(found, GOLDEN_ANGLE_DEG * np.arange(16))


@pytest.mark.parametrize("is_counted", [False, True])
@pytest.mark.parametrize("cuts", [(), (1,), range(40)])
def test_golden_angles_without_limits_follow_counter_or_running_number(streams: Streams, is_counted: bool, cuts: Any):
    readouts = [
        streams.readout(n if is_counted else 0, samples=6, slice=s, seed=n, repetition=n // 5)
        for n in range(10)
        for s in range(2)
    ]
    groups, _ = streams.assemble(scan(streams, "goldenangle", n=None), readouts, cuts=cuts)
    assert len(groups) == 4
    for group in groups:
        first = 5 * group.key.repetition
        assert same_angles(angles_deg(group)[0], GOLDEN_ANGLE_DEG * np.arange(first, first + 5))


@pytest.mark.parametrize("flags", [(), (F.IS_REVERSE,)])
def test_computed_spoke_has_its_centre_at_the_centre_sample(streams: Streams, flags: tuple[AcquisitionFlag, ...]):
    center = 2 if not flags else 3  # of six samples, 2 of them left out before the centre or behind it
    readouts = [streams.readout(n, *flags, samples=6, center=center, discard=(1, 0)) for n in range(N_SPOKES)]
    (group,), _ = streams.assemble(scan(streams, "radial", x=12), readouts, finish=False)
    first = 1 if not flags else 0
    expected = (np.arange(first, first + 5) - 2) / 12
    np.testing.assert_allclose(group.trajectory[0, 0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("kind", [TrajectoryType.RADIAL, TrajectoryType.GOLDENANGLE])
def test_spokes_that_only_their_running_number_tells_apart_are_not_gated(
    streams: Streams, kind: TrajectoryType
) -> None:
    with pytest.raises(AssemblyError, match="expected limits of kspace_encoding_step_1"):
        make_assembly(scan(streams, kind, n=None), Grouping.CINE, streams.Slots(), None, {"cardiac_phases": 4})
