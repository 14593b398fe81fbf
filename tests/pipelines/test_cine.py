"""Cine groups from simulated scans through the pipelines that reconstruct frame by frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.frame import Grouping
from pipelines.errors import ReconstructionError
from pipelines.parameters import SenseParameters
from pipelines.phantom import beating_heart, head_phantom
from pipelines.pipeline import Pipeline
from pipelines.preprocess.preparation import prepare
from pipelines.scan_header import parse_scan_header
from pipelines.simulate import simulate
from pipelines.simulated_protocol import FrameCounter, Pattern, Protocol

N = 48
N_PHASES = 3


def beating() -> np.ndarray:
    """`(frames, slices, y, x)`: a disc in the head grows from phase to phase."""
    y, x = np.mgrid[:N, :N] - N // 2
    frames = [head_phantom(1, N, N)[0] * 0.5 + 0.5 * (np.hypot(y, x) < 4 + 3 * n) for n in range(N_PHASES)]
    return np.asarray(frames, np.float32)[:, None]


def groups_of(scan, grouping):
    assembler = Assembler(parse_scan_header(scan.header), grouping, HeapSlots())
    return [group for batch in scan.batches for group in assembler.add(batch)] + assembler.finish()


@pytest.fixture(scope="module")
def measured():
    protocol = Protocol(
        acceleration=2, calibration_lines=16, frame_counter=FrameCounter.PHASE, noise_std=0.005, phase_std_rad=0.3
    )
    return simulate(beating(), protocol)


@pytest.mark.parametrize("name", ["zero_filled", "sense"])
def test_every_phase_becomes_its_own_image_with_its_deviation(measured, name):
    (group,) = groups_of(measured, Grouping.CINE)
    assert group.is_complete
    output = Pipeline(name, {}, "cpu")(group, {})
    magnitudes = [image for image in output.images if image.header["image_series_index"] == 1]
    deviations = [image for image in output.images if image.header["image_series_index"] == 2]
    assert [int(image.header["phase"]) for image in magnitudes] == list(range(N_PHASES))
    truth = measured.truth.whitened_magnitude()[:, 0]
    errors = np.array([[np.linalg.norm(image.pixels[0, 0] - each) for each in truth] for image in magnitudes])
    assert errors.argmin(axis=1).tolist() == list(range(N_PHASES))
    assert all(np.median(image.pixels) > 0 for image in deviations)


def test_frames_of_a_cine_are_reconstructed_like_single_ones_with_shared_maps(measured):
    (cine,) = groups_of(measured, Grouping.CINE)
    single = groups_of(measured, Grouping.SLICE)
    together = Pipeline("sense", {}, "cpu")(cine, {}).images[::2]
    apart = [Pipeline("sense", {}, "cpu")(group, {}).images[0] for group in single]
    for one, other in zip(together, apart, strict=True):
        # the maps come from all frames here and from one there: equal but for noise
        assert np.linalg.norm(one.pixels - other.pixels) < 0.05 * np.linalg.norm(other.pixels)


def test_calibration_region_is_the_mean_over_all_frames(measured):
    (cine,) = groups_of(measured, Grouping.CINE)
    unwhitened = SenseParameters(whiten=False)
    together = prepare(replace(cine, noise=None), unwhitened, "cpu").prepared.calibration
    apart = [
        prepare(replace(group, noise=None), unwhitened, "cpu").prepared.calibration
        for group in groups_of(measured, Grouping.SLICE)
    ]
    assert together is not None
    assert together.shape[2] >= 16
    mean = sum(each for each in apart if each is not None) / N_PHASES
    np.testing.assert_allclose(together.numpy(), mean.numpy(), atol=1e-4 * float(mean.abs().max()))


def test_phases_with_random_masks_of_their_own_are_complete_and_reconstructed():
    protocol = Protocol(
        pattern=Pattern.RANDOM, acceleration=3, calibration_lines=12, frame_counter=FrameCounter.PHASE, noise_std=0.005
    )
    scan = simulate(beating(), protocol)
    (group,) = groups_of(scan, Grouping.CINE)
    np.testing.assert_array_equal(group.counts[:, 0], scan.truth.counts[:, 0])
    assert len({counts.tobytes() for counts in group.counts}) == N_PHASES
    assert group.is_complete
    output = Pipeline("sense", {}, "cpu")(group, {})
    assert len(output.images) == 2 * N_PHASES
    assert all("Incomplete" not in image.meta for image in output.images)


@pytest.fixture(scope="module")
def with_other_lines_in_each_frame():
    protocol = Protocol(
        acceleration=3, calibration_lines=8, pattern=Pattern.RANDOM, frame_counter=FrameCounter.PHASE, noise_std=0.01
    )
    frames = beating_heart(8, N, N)[:, None]
    return simulate(frames, protocol)


def test_cine_of_networks_gives_frames_deviations_and_parts(with_other_lines_in_each_frame):
    scan = with_other_lines_in_each_frame
    (group,) = groups_of(scan, Grouping.CINE)
    output = Pipeline("cine_ls_dip", {"steps": "30", "extra_series": "low_rank,sparse"}, "cpu")(group, {})
    series = {
        number: np.array([each.pixels[0, 0] for each in output.images if each.header["image_series_index"] == number])
        for number in (1, 2)
    }
    assert series[1].shape == series[2].shape == (8, N, N)
    truth = scan.truth.whitened_magnitude()[:, 0]
    scale = np.vdot(series[1], truth) / np.vdot(series[1], series[1])
    wrong = np.abs(scale * series[1] - truth)
    assert np.linalg.norm(wrong) < 0.06 * np.linalg.norm(truth)
    inside = truth.mean(0) > 0.05 * truth.max()
    assert 0.75 < (wrong <= 1.645 * scale * series[2])[:, inside].mean() < 1
    extras = {image.meta["ReconExtra"][0] for image in output.images if "ReconExtra" in image.meta}
    assert extras == {"low_rank", "sparse"}
    (kind,) = {image.meta["ReconUncertaintyKind"][0] for image in output.images if "ReconUncertaintyKind" in image.meta}
    assert kind == "ensemble"


def test_cine_whose_frames_share_their_lines_is_refused_with_the_reason(measured):
    (group,) = groups_of(measured, Grouping.CINE)
    with pytest.raises(ReconstructionError, match="all frames leave out the same lines"):
        Pipeline("cine_ls_dip", {}, "cpu")(group, {})
