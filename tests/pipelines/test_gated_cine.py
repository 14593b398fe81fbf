"""A beating phantom, measured line by line while it beats: gated images show it as it is at each cardiac phase."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.assembly.assembly import make_assembly
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.frame import Grouping
from pipelines.mrd import TICK_S, Acquisitions, Image
from pipelines.phantom import birdcage_coils
from pipelines.pipeline import Pipeline
from pipelines.scan_header import Encoding, Limit, ScanHeader, Space
from pipelines.simulate import centred_fft

if TYPE_CHECKING:
    Hearts = Any

N = 64
N_COILS = 4
N_PHASES = 12
INTERVALS = [360, 352, 366, 372, 358, 348, 340, 356, 370, 364, 352, 358, 346, 362, 368, 354, 360]
"""Ticks; around 0.9 s, varying by 4 %."""


def phantom(phase: float) -> NDArray[np.float32]:
    """A chest with a ventricle whose radius is `12 - 5 sin^2(pi phase)` pixels; each pixel the mean of 4 x 4 points."""
    fine = (np.arange(4 * N) + 0.5) / 4 - N / 2
    y, x = np.meshgrid(fine, fine, indexing="ij")
    radius = 12 - 5 * np.sin(np.pi * phase) ** 2
    image = 0.4 * ((x / 28) ** 2 + (y / 22) ** 2 < 1)
    image = image + 0.3 * (((x - 4) ** 2 + (y + 3) ** 2) < (radius + 4) ** 2)
    image = image + 0.3 * (((x - 4) ** 2 + (y + 3) ** 2) < radius**2)
    return image.reshape(N, 4, N, 4).mean(axis=(1, 3)).astype(np.float32)


MAPS = birdcage_coils(N_COILS, (N, N))


@cache
def measured(step: int) -> NDArray[np.complex64]:
    """K-space of all coils at one of 360 steps of a heartbeat."""
    return centred_fft((phantom(step / 360) * MAPS).astype(np.complex64))


def kspace(phase: float) -> NDArray[np.complex64]:
    return measured(round(phase * 360) % 360)


def scan() -> ScanHeader:
    space = Space((N, N, 1), (300.0, 300.0, 8.0))
    limits = {"phase": Limit(0, 0, 0), "kspace_encode_step_1": Limit(0, N - 1, N // 2)}
    return ScanHeader((Encoding(space, space, limits=limits),), receiver_channels=N_COILS)


def as_batch(readouts: list[Acquisitions]) -> Acquisitions:
    return Acquisitions(
        np.concatenate([each.headers for each in readouts]), np.concatenate([each.samples for each in readouts])
    )


def reconstruct(hearts: Hearts, triggers: list[int], pipeline: str = "zero_filled", **parameters: Any) -> list[Image]:
    """Magnitude images of a free-running scan: the scanner saw `triggers`, the heart beat at `beats`."""
    beats, weak = parameters.pop("beats", triggers), parameters.pop("weak", range(0))
    readouts = hearts.free_running(kspace, N, beats)
    for readout in readouts:
        tick = int(readout.headers["acquisition_time_stamp"][0]) - 14_400_000
        hearts.stamp(readout, tick, triggers)
        if tick in weak:  # an early beat that does not fill the heart: it stays small
            small = kspace(0.5)[None, :, int(readout.headers["idx"]["kspace_encode_step_1"][0])]
            readout.samples[:] = Acquisitions.from_arrays(readout.headers, small).samples
    values = {"cardiac_phases": N_PHASES, "gating": "trigger", **parameters}
    made = Pipeline(pipeline, values, "cpu")
    assembly = make_assembly(scan(), Grouping.SLICE, HeapSlots(), None, values)
    groups = assembly.add(as_batch(readouts)) + assembly.finish()
    images = [image for group in groups for image in made(group, {}).images]
    return [image for image in images if int(image.header["image_series_index"]) == 1]


def triggers_of(intervals: list[int]) -> list[int]:
    return np.cumsum([40, *intervals]).tolist()


def nrmse(images: list[Image], phase_of: Any) -> float:
    """Against the phantom at a phase for each image, all images together."""
    truth = np.stack([phantom(phase_of(image)) for image in images])
    found = np.stack([image.pixels[0, 0] for image in images])
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def centre(image: Image) -> float:
    return (int(image.header["phase"]) + 0.5) / N_PHASES


@pytest.mark.parametrize("pipeline", ["zero_filled", "sense"])
def test_gated_images_are_the_phantom_at_each_phase(hearts: Hearts, pipeline: str) -> None:
    images = reconstruct(hearts, triggers_of(INTERVALS), pipeline)
    assert [int(image.header["phase"]) for image in images] == list(range(N_PHASES))
    assert [int(image.header["image_index"]) for image in images] == list(range(1, N_PHASES + 1))
    # A phase lasts a twelfth of the beat, in which the radius changes by up to 1.3 pixels: lines of one image differ by
    # at most half of that from its centre (measured: 0.014, of single phases 0.008 to 0.023).
    assert nrmse(images, centre) < 0.02
    assert nrmse(images, lambda image: (centre(image) + 0.5) % 1) > 0.2
    assert max(nrmse([image], centre) for image in images) < 0.03


def test_phases_of_a_wrong_heart_rate_show_another_heart(hearts: Hearts) -> None:
    true = triggers_of(INTERVALS)
    wrong = list(range(40, true[-1], 300))  # triggers at a fixed rate, as without an ECG
    assert nrmse(reconstruct(hearts, wrong, beats=true), centre) > 5 * nrmse(reconstruct(hearts, true), centre)


def test_a_rejected_beat_keeps_its_motion_out_of_the_images(hearts: Hearts) -> None:
    triggers = triggers_of([*INTERVALS[:11], 190, 540, *INTERVALS[11:]])
    weak = range(triggers[11], triggers[13])  # the beats of the middle of k-space
    rejected = reconstruct(hearts, triggers, weak=weak)
    used = reconstruct(hearts, triggers, weak=weak, rr_window=1.0)
    assert rejected[0].meta["IntervalsRejected"] == ["2"]
    assert used[0].meta["IntervalsRejected"] == ["0"]
    assert nrmse(rejected, centre) < 0.02
    assert nrmse(used, centre) > 2 * nrmse(rejected, centre)


def test_the_images_tell_when_after_the_trigger_they_are(hearts: Hearts) -> None:
    images = reconstruct(hearts, triggers_of([400] * 17))
    told_ms = [float(image.meta["TriggerTime"][0]) for image in images]
    np.testing.assert_allclose(told_ms, [(n + 0.5) / N_PHASES * 1000 for n in range(N_PHASES)], atol=1.25)
    stamps = [int(image.header["physiology_time_stamp"][0]) * TICK_S * 1e3 for image in images]
    np.testing.assert_allclose(told_ms, stamps)
    assert {image.meta["NominalInterval"][0] for image in images} == {"1000"}


def test_ungated_images_are_marked_and_show_the_mean_of_the_beat(hearts: Hearts) -> None:
    (image,) = reconstruct(hearts, [], beats=triggers_of(INTERVALS))
    assert (image.meta["ReconGating"], image.meta["ReconDegraded"]) == (["none"], ["true"])
    assert "TriggerTime" not in image.meta
    mean = np.mean([phantom(step / 60) for step in range(60)], axis=0)
    error = np.linalg.norm(image.pixels[0, 0] - mean) / np.linalg.norm(mean)
    assert error < 0.05


def without_a_segment(hearts: Hearts) -> list[Acquisitions]:
    """Eight beats for eight segments, the last one cut short: its eight lines are missing in the last quarter."""
    triggers = triggers_of(INTERVALS[:8])
    limit = 14_400_000 + triggers[-2] + 3 * INTERVALS[7] // 4
    readouts = hearts.free_running(kspace, N, triggers)
    return [each for each in readouts if int(each.headers["acquisition_time_stamp"][0]) < limit]


@pytest.mark.parametrize("reach", [0, 3])
def test_view_sharing_fills_lines_from_the_nearest_phases_and_says_so(hearts: Hearts, reach: int) -> None:
    values = {"cardiac_phases": N_PHASES, "gating": "trigger", "view_sharing": reach}
    assembly = make_assembly(scan(), Grouping.SLICE, HeapSlots(), None, values)
    groups = assembly.add(as_batch(without_a_segment(hearts))) + assembly.finish()
    assert [group.key.phase for group in groups] == list(range(N_PHASES))
    lacking = [group.key.phase for group in groups if not group.is_complete]
    borrowing = [group.key.phase for group in groups if "ReconViewSharing" in group.notes]
    if reach == 0:
        assert lacking == [9, 10, 11]
        assert borrowing == []
        return
    assert lacking == []
    assert borrowing == [9, 10, 11]
    assert {groups[phase].notes["ReconViewSharing"] for phase in borrowing} == {"8 lines"}
    by_phase = {group.key.phase: group for group in groups}
    filled = slice(56, 64)
    for phase, lenders in ((9, [8]), (11, [0]), (10, [8, 0])):  # 10 is as near to 8 as to 0
        expected = sum(by_phase[lender].kspace[0, :, 0, filled] for lender in lenders)
        counts = sum(by_phase[lender].counts[0, 0, filled] for lender in lenders)
        np.testing.assert_allclose(by_phase[phase].kspace[0, :, 0, filled], expected)
        np.testing.assert_array_equal(by_phase[phase].counts[0, 0, filled], counts)
    made = Pipeline("zero_filled", values, "cpu")
    images = [made(group, {}).images[0] for group in groups]
    assert nrmse(images, centre) < 0.05  # motion between neighbouring phases in an eighth of the lines of three
