"""Contrasts, sets, phases and repetitions, wherever they start; several encoding spaces; counters beyond the matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.phantom import head_phantom
from pipelines.scan_header import Limit
from pipelines.simulate import simulate
from pipelines.simulated_protocol import FrameCounter, Protocol
from pipelines.simulation.disturbances import with_reference
from pipelines.simulation.plan import echoes_innermost
from pipelines.simulation.scan import SimulatedScan
from pipelines.simulation.volume import VolumeSampling, simulate_volume

Fixture = Callable[..., Any]
CLEAN = Protocol(n_coils=2, noise_std=0, noise_readouts=0)
PLACE = {"slice": 1, "contrast": 2, "phase": 3, "repetition": 4, "set": 5}


@given(
    st.dictionaries(st.sampled_from(FrameCounter), st.integers(1, 3), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(list(PLACE)), st.integers(0, 9), max_size=3),
    st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_every_combination_of_counters_is_an_image_of_its_own(
    reconstruct: Fixture, sizes: dict[FrameCounter, int], first: dict[str, int], is_interleaved: bool
) -> None:
    """Each frame has another brightness; Gadgetron's buffers pile up counters that do not start at 0 on one place."""
    n_frames = int(np.prod(list(sizes.values())))
    levels = 1 + np.arange(n_frames, dtype=np.float32)
    anatomy = levels[:, None, None, None] * head_phantom(1, 24, 20)
    protocol = replace(CLEAN, frame_counters=tuple(sizes.items()), first_counters=first)
    scan = simulate(anatomy, protocol, edit=echoes_innermost if is_interleaved else None)
    images = reconstruct(scan)
    assert len(images) == n_frames
    counters = protocol.counters_of_frames(n_frames)
    for frame, level in enumerate(levels):
        key = [0, *(first.get(name, 0) for name in PLACE)]
        for counter, values in counters.items():
            key[PLACE[counter.value]] += int(values[frame])
        image = images[tuple(key)]
        np.testing.assert_allclose(image.pixels[0, 0], level * head_phantom(1, 24, 20)[0], atol=2e-5 * n_frames)
        for name, at in PLACE.items():
            assert int(image.header[name]) == key[at]


@pytest.mark.parametrize("flags", [True, False])
def test_cardiac_phases_that_do_not_start_at_zero_are_all_there(assemble_as_specified: Fixture, flags: bool) -> None:
    protocol = replace(CLEAN, frame_counter=FrameCounter.PHASE, first_counters={"phase": 7}, order_flags=flags)
    scan = simulate(np.ones((5, 2, 24, 20), np.float32), protocol)
    groups, assembler = assemble_as_specified(scan)
    assert sorted({key[3] for key in groups}) == [7, 8, 9, 10, 11]
    assert assembler.take_warnings() == []


def test_sets_of_a_flow_scan_are_kept_apart(assemble_as_specified: Fixture) -> None:
    protocol = replace(CLEAN, frame_counters=((FrameCounter.SET, 2), (FrameCounter.PHASE, 2)))
    anatomy = np.random.default_rng(0).random((4, 1, 24, 20)).astype(np.float32)
    groups, _ = assemble_as_specified(simulate(anatomy, protocol, edit=echoes_innermost))
    assert sorted((key[5], key[3]) for key in groups) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("is_first", [True, False])
def test_images_of_every_encoding_space_come_with_its_own_matrix_and_series(
    assemble_as_specified: Fixture, reconstruct: Fixture, nrmse: Fixture, is_first: bool
) -> None:
    anatomy = head_phantom(2, 48, 40)
    scan = with_reference(simulate(anatomy, replace(CLEAN, phase_std_rad=0)), (20, 24), is_first=is_first)
    groups, _ = assemble_as_specified(scan)
    assert sorted((key[0], key[1]) for key in groups) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    images = reconstruct(scan)
    for (space, number, *_), image in images.items():
        shape = (48, 40) if space == 0 else (24, 20)
        assert image.pixels.shape == (1, 1, *shape)
        assert int(image.header["image_series_index"]) == 1 + 2 * space
        blocks = anatomy[number].reshape(shape[0], 48 // shape[0], shape[1], 40 // shape[1]).mean(axis=(1, 3))
        # the low resolution rings and lies half a fine pixel off the mean of blocks
        assert nrmse(image.pixels, blocks) < (0.01 if space == 0 else 0.35)
    assert len({int(image.header["image_index"]) for image in images.values()}) == 4


def with_limits(scan: SimulatedScan, **limits: Limit) -> SimulatedScan:
    assert scan.content is not None
    return scan.with_content(scan.content.with_limits(limits))


def test_counters_beyond_the_matrix_are_counted_and_never_written(
    assemble: Fixture, place: Fixture, reconstruct: Fixture, nrmse: Fixture
) -> None:
    """Limits of 0 to 55 on a matrix of 48, as real headers have them (mrpro#217): what fits is placed.

    Gadgetron ignores such lines with a warning of its own; mrpro's Cartesian sampling broke on them.
    """
    plain = simulate(head_phantom(1, 56, 40), replace(CLEAN, phase_std_rad=0.1))
    assert plain.content is not None
    space = plain.content.encodings[0]
    matrix = replace(space.encoded, matrix=(80, 48, 1), field_of_view_mm=(440.0, 220.0, 5.0))
    scan = plain.with_content(plain.content.with_encoding(replace(space, encoded=matrix), 0))
    groups, assembler = assemble(scan)
    ((key, group),) = groups.items()
    assert assembler.counts["out_of_range"] == 8
    (warning,) = assembler.take_warnings()
    assert "kspace_encode_step_1 4 to 51" in warning
    one = place(scan)[key]
    np.testing.assert_allclose(group.kspace[0], one.kspace, atol=1e-5)
    np.testing.assert_array_equal(group.counts[0], one.counts)
    assert group.is_complete


@pytest.mark.parametrize(
    ("name", "limit", "n_groups", "n_lost"),
    [
        ("slice", Limit(0, 0, 0), 2, 48),
        ("contrast", Limit(0, 0, 0), 2, 48),
        ("phase", Limit(0, 0, 0), 2, 48),
        ("set", Limit(0, 0, 0), 2, 48),
        ("repetition", Limit(0, 0, 0), 2, 48),
        ("kspace_encoding_step_1", Limit(0, 22, 12), 4, 4),
    ],
)
def test_counter_beyond_its_limit_is_left_out_and_named(
    assemble: Fixture, name: str, limit: Limit, n_groups: int, n_lost: int
) -> None:
    counter = FrameCounter(name) if name in set(FrameCounter) else FrameCounter.REPETITION
    scan = simulate(np.ones((2, 2, 24, 20), np.float32), replace(CLEAN, frame_counter=counter))
    groups, assembler = assemble(with_limits(scan, **{name: limit}))
    assert (len(groups), assembler.counts["out_of_range"]) == (n_groups, n_lost)
    (warning,) = assembler.take_warnings()
    assert "left out" in warning
    assert name.replace("encoding", "encode") in warning


def test_partition_beyond_the_matrix_is_left_out(assemble: Fixture) -> None:
    scan = simulate_volume(head_phantom(8, 16, 16), CLEAN, VolumeSampling())
    groups, assembler = assemble(with_limits(scan, kspace_encoding_step_2=Limit(0, 9, 6)))
    (group,) = groups.values()
    assert group.counts[0].sum(axis=1).tolist() == [16] * 6 + [0, 0]
    assert (assembler.counts["imaging"], assembler.counts["out_of_range"]) == (6 * 16, 2 * 16)
