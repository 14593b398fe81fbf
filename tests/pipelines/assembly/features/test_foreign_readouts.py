"""Readouts that are not meant for the image are kept out of it, whatever their counters say.

Gadgetron's generic chains put navigators, feedback, dummy, surface-coil and stabilisation readouts (flags 23, 26 to 31)
into image k-space (protocol.md, 2.1). Here they hold garbage a million times the signal, with the counters of image
lines; one of them in k-space would drown the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.mrd import NEVER_IMAGING, AcquisitionFlag
from pipelines.phantom import head_phantom
from pipelines.scan_header import CalibrationMode
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol, SliceOrder
from pipelines.simulation.disturbances import mix_in
from pipelines.simulation.volume import simulate_volume

Fixture = Callable[..., Any]
PROTOCOL = Protocol(n_coils=4, acceleration=2, calibration_lines=16, noise_std=0.005)


@pytest.mark.parametrize("flag", NEVER_IMAGING, ids=lambda flag: flag.name)
@pytest.mark.parametrize("name", ["zero_filled", "sense"])
def test_image_is_the_same_bytes_with_and_without_them(
    reconstruct: Fixture, assemble: Fixture, flag: AcquisitionFlag, name: str
) -> None:
    scan = simulate(head_phantom(1, 48, 40), PROTOCOL)
    mixed = mix_in(scan, [flag])
    assert mixed.n_readouts > scan.n_readouts
    groups, assembler = assemble(mixed)
    assert assembler.counts["imaging"] == scan.n_readouts - PROTOCOL.noise_readouts
    assert len(groups) == 1
    (image,), (expected,) = reconstruct(mixed, name).values(), reconstruct(scan, name).values()
    np.testing.assert_array_equal(image.pixels, expected.pixels)


@pytest.mark.parametrize("mode", [CalibrationMode.EMBEDDED, CalibrationMode.SEPARATE])
@pytest.mark.parametrize("order", SliceOrder)
def test_they_end_no_group_and_start_none(
    assemble_as_specified: Fixture, mode: CalibrationMode, order: SliceOrder
) -> None:
    """A third of them carries LAST_IN_SLICE; none of the groups ends early by it."""
    protocol = replace(PROTOCOL, calibration_mode=mode, slice_order=order, repetitions=2)
    scan = mix_in(simulate(head_phantom(3, 48, 40), protocol), every=3)
    groups, assembler = assemble_as_specified(scan)
    assert len(groups) == 6
    assert all(group.is_complete for group in groups.values())
    assert assembler.counts["late"] == 0


def test_they_stay_out_of_volumes_too(assemble_as_specified: Fixture) -> None:
    groups, _ = assemble_as_specified(mix_in(simulate_volume(head_phantom(6, 16, 16), PROTOCOL)))
    assert len(groups) == 1
