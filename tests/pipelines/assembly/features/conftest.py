"""Simulated streams through the real assembler and pipelines, compared with their placement by ismrmrd-python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.frame import Group, Grouping
from pipelines.mrd import Image
from pipelines.pipeline import Pipeline
from pipelines.scan_header import parse_scan_header
from pipelines.simulation.scan import SimulatedScan

Key = tuple[int, ...]
Assembled = tuple[dict[Key, Group], Assembler]


def key_of(group: Group) -> Key:
    key = group.key
    return (key.encoding, key.slice, key.contrast, key.phase, key.repetition, key.set)


def assemble_scan(scan: SimulatedScan) -> Assembled:
    """Groups of one slice of one frame by their counters, in the order in which they were handed on."""
    assembler = Assembler(parse_scan_header(scan.header), Grouping.SLICE, HeapSlots())
    groups = [group for batch in scan.batches for group in assembler.add(batch)] + assembler.finish()
    by_key = {key_of(group): group for group in groups}
    assert len(by_key) == len(groups)
    assert sum(assembler.counts.values()) == scan.n_readouts
    return by_key, assembler


@pytest.fixture(scope="session")
def assemble() -> Callable[[SimulatedScan], Assembled]:
    return assemble_scan


@pytest.fixture(scope="session")
def assemble_as_specified(place: Callable[..., Any]) -> Callable[[SimulatedScan], Assembled]:
    """Assemble, and compare every group with the specification's placement: samples, counts, calibration, extent."""

    def check(scan: SimulatedScan) -> Assembled:
        groups, assembler = assemble_scan(scan)
        placed = place(scan)
        assert groups.keys() == placed.keys()
        for key, one in placed.items():
            group = groups[key]
            scale = np.abs(one.kspace).max()
            np.testing.assert_allclose(group.kspace[0], one.kspace, rtol=1e-5, atol=1e-6 * scale)
            np.testing.assert_array_equal(group.counts[0], one.counts)
            columns = np.flatnonzero(one.sampled)
            assert group.readout_extent == (columns[0], columns[-1] + 1)
            mode = group.scan.encodings[key[0]].calibration_mode
            if mode == "embedded":
                np.testing.assert_array_equal(group.calibration_lines, one.calibration)
        return groups, assembler

    return check


@pytest.fixture(scope="session")
def reconstruct() -> Callable[..., dict[Key, Image]]:
    """Magnitude images of all groups by their counters."""

    def run(scan: SimulatedScan, name: str = "zero_filled", **parameters: object) -> dict[Key, Image]:
        pipeline = Pipeline(name, parameters, "cpu")
        return {key: pipeline(group, {}).images[0] for key, group in assemble_scan(scan)[0].items()}

    return run


@pytest.fixture(scope="session")
def nrmse() -> Callable[..., float]:
    """Root of the mean squared difference over that of the reference.

    Images are compared as they are; `is_scaled` is for whitened data, whose unit is the noise of the scan.
    """

    def measure(image: Any, reference: Any, *, is_scaled: bool = False) -> float:
        image, reference = np.squeeze(image), np.squeeze(reference)
        if is_scaled:
            image = image * (np.vdot(image, reference) / np.vdot(image, image))
        return float(np.linalg.norm(image - reference) / np.linalg.norm(reference))

    return measure
