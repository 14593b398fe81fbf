from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy import ndimage

from pipelines.errors import EvaluationError
from pipelines.evaluation.cine_cases import (
    SIDE,
    TAPER,
    CineCase,
    cine_masks,
    displacement,
    heart_box,
    load_cine,
    load_cycle,
    same_slice_pairs,
    temporal_gradient_error,
    undersample_cine,
    warped_cycle,
)
from pipelines.operators.fourier import to_image
from pipelines.phantom import beating_heart, birdcage_coils
from pipelines.recon.cine_start import classic, make_start

SAMPLINGS = ("variable_density", "golden_step")
SUNNYBROOK = Path("/work/shared/data/train/cardiac_sax_sunnybrook.h5")
CINE = Path("/work/shared/data/cine/cine_sax_30.h5")


def write(path, **datasets: Any):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def in_bytes(frames):
    return np.round(255 * frames).astype(np.uint8)


def ring(radius, n=96, centre=(44, 52), seed=5):
    """A ventricle: bright blood within a grey wall that thickens as blood leaves, textured chest around it."""
    y, x = np.indices((n, n))
    distance = np.hypot(y - centre[0], x - centre[1])
    wall = np.sqrt(radius**2 + 300)
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((n, n)), 3)
    chest = 0.3 + 0.8 * texture
    picture = np.where(distance < radius, 0.9, np.where(distance < wall, 0.35, chest))
    return ndimage.gaussian_filter(picture.clip(0, 1), 0.7).astype(np.float32)


@pytest.fixture(scope="module")
def case():
    frames = torch.from_numpy(beating_heart(12, 64, 48))
    return CineCase("heart", "heart", frames / frames.max())


@pytest.fixture(scope="module")
def cycle():
    return warped_cycle(ring(20), ring(14), 20)


def difference(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("acceleration", [1, 2.5, 4, 8, 12])
def test_every_frame_has_the_lines_that_the_acceleration_leaves(sampling, acceleration, rng):
    masks = cine_masks(sampling, 10, 128, acceleration, 6, rng)

    assert (masks.sum(1) == round(128 / acceleration)).all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_calibration_lines_are_in_every_frame_and_others_change(sampling, rng):
    masks = cine_masks(sampling, 10, 128, 8, 6, rng)

    assert masks[:, 61:67].all()
    assert len(np.unique(masks, axis=0)) == 10
    assert masks.any(0).sum() > 60


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_lines_are_denser_towards_the_centre_on_both_sides(sampling, rng):
    often = cine_masks(sampling, 400, 128, 8, 6, rng).mean(0)

    inner, outer = often[[*range(40, 61), *range(67, 88)]].mean(), often[[*range(20), *range(108, 128)]].mean()
    assert inner > 3 * outer > 0
    assert often[:64].sum() == pytest.approx(often[65:].sum(), rel=0.15)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_calibration_may_be_all_that_is_measured(sampling, rng):
    masks = cine_masks(sampling, 3, 32, 8, 4, rng)

    assert (masks.sum(1) == 4).all()
    assert masks[:, 14:18].all()


@pytest.mark.parametrize(("sampling", "acceleration", "calibration", "message"), [
    ("random", 4, 4, "unknown sampling 'random'; known are variable_density, golden_step"),
    ("golden_step", 16, 6, "leaves 4 of 64 lines; 6 are calibration"),
    ("golden_step", 0.5, 6, r"0\.5-fold"),
    ("golden_step", 1000, 0, "leaves 0 of 64"),
])  # fmt: skip
def test_impossible_patterns_are_refused(sampling, acceleration, calibration, message, rng):
    with pytest.raises(EvaluationError, match=message):
        cine_masks(sampling, 5, 64, acceleration, calibration, rng)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_k_space_is_zero_exactly_where_no_line_was_measured(case, sampling):
    prepared, truth = undersample_cine(case, sampling, 4, 0.02, 0, frames=10)

    assert prepared.kspace.shape == (10, 8, 1, 64, 48)
    assert prepared.counts.shape == (10, 1, 64)
    assert truth.shape == (10, 64, 48)
    assert torch.equal(prepared.kspace.abs().sum((1, 2, 4)) > 0, prepared.counts[:, 0] > 0)
    assert float(prepared.counts.sum()) == 10 * 16


def test_a_full_scan_without_noise_gives_the_truth(case):
    prepared, truth = undersample_cine(case, "golden_step", 1, 0, 0)

    images = torch.linalg.vector_norm(to_image(prepared.kspace[:, :, 0]), dim=1)
    torch.testing.assert_close(images, truth, atol=1e-5, rtol=0)
    torch.testing.assert_close(truth, case.truth)


def test_noise_has_the_level_that_is_said(case):
    noisy, truth = undersample_cine(case, "variable_density", 2, 0.05, 3, n_coils=4)
    clean, _ = undersample_cine(case, "variable_density", 2, 0, 3, n_coils=4)

    measured = noisy.counts > 0
    added = (noisy.kspace - clean.kspace)[measured[:, None].expand(-1, 4, -1, -1)]
    assert float(added.abs().square().mean().sqrt()) == pytest.approx(0.05 * float(truth.max()), rel=0.02)
    assert abs(complex(added.square().mean())) < 0.05 * 0.05**2
    assert noisy.noise_std == pytest.approx(0.05 * float(truth.max()))
    assert noisy.noise_is_measured


def test_a_point_of_k_space_gets_the_same_noise_in_every_pattern(case):
    one, _ = undersample_cine(case, "variable_density", 2, 0.05, 3)
    other, _ = undersample_cine(case, "golden_step", 4, 0.05, 3)

    both = ((one.counts > 0) & (other.counts > 0))[:, None, :, :, None]
    assert bool(both.any())
    torch.testing.assert_close(one.kspace * both, other.kspace * both)


def test_the_seed_decides_pattern_phase_and_noise(case):
    first, again, other = (undersample_cine(case, "golden_step", 4, 0.02, seed)[0] for seed in (1, 1, 2))

    assert torch.equal(first.kspace, again.kspace)
    assert not torch.equal(first.counts, other.counts)
    assert not torch.allclose(first.kspace[:, :, 0, 32], other.kspace[:, :, 0, 32], atol=0.1)


def test_calibration_is_the_centre_averaged_over_time(case):
    prepared, _ = undersample_cine(case, "variable_density", 4, 0.02, 0)

    assert prepared.calibration is not None
    n = prepared.calibration.shape[2]
    assert n >= 8
    lines = slice(32 - n // 2, 32 - n // 2 + n)
    kspace, counts = prepared.kspace[:, :, :, lines], prepared.counts[:, None, :, lines, None]
    assert bool(counts.any(0).all())
    torch.testing.assert_close(prepared.calibration, kspace.sum(0) / counts.sum(0))


def test_maps_of_the_calibration_are_those_of_the_coils(case):
    prepared, truth = undersample_cine(case, "variable_density", 4, 0.005, 0)

    maps = make_start(prepared).maps[:, 0]
    coils = torch.from_numpy(birdcage_coils(8, (64, 48)))
    same = (maps.conj() * coils).sum(0).abs()[truth.mean(0) > 0.2]
    assert float(same.mean()) > 0.99


def test_frames_can_be_reconstructed_together(case):
    prepared, truth = undersample_cine(case, "golden_step", 4, 0.01, 0)

    start = make_start(prepared)
    frames = start.system.to_images(classic(start, start.system, 30).frames)[:, 0].abs() * start.scale
    assert difference(frames.numpy(), truth.numpy()) < 0.15


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_that_is_no_level_is_refused(case, noise):
    with pytest.raises(EvaluationError, match="noise must be at least 0"):
        undersample_cine(case, "golden_step", 4, noise, 0)


def test_displacement_finds_a_shift():
    picture = ndimage.gaussian_filter(np.random.default_rng(0).uniform(size=(80, 72)), 4)
    picture = ((picture - picture.min()) / np.ptp(picture)).astype(np.float32)
    moved = ndimage.shift(picture, (3.0, -5.0), order=3, mode="nearest")

    found = displacement(moved, picture)

    inner = found[:, 12:-12, 12:-12]
    np.testing.assert_allclose(np.median(inner, axis=(1, 2)), (-3, 5), atol=0.3)


def test_a_cycle_begins_at_the_end_of_diastole_and_reaches_that_of_systole(cycle):
    from_systole = [difference(frame, ring(14)) for frame in cycle]

    np.testing.assert_allclose(cycle[0], ring(20), atol=1e-6)
    assert int(np.argmin(from_systole)) == 7
    assert min(from_systole) < 0.02
    assert from_systole[0] > 0.15


def test_a_cycle_is_periodic_and_smooth(cycle):
    steps = [difference(cycle[number - 1], frame) for number, frame in enumerate(cycle)]

    assert np.isfinite(cycle).all()
    assert steps[0] < 1e-6
    assert max(steps) < 0.4 * difference(ring(14), ring(20))


def test_a_ventricle_of_a_cycle_moves_and_does_not_fade(cycle):
    cross_fade = (ring(20) + ring(14)) / 2
    blood = [int((frame > 0.6).sum()) for frame in cycle[:8]]

    assert min(difference(frame, ring(17)) for frame in cycle) < 0.5 * difference(cross_fade, ring(17))
    assert blood == sorted(blood, reverse=True)
    assert len({area // 50 for area in blood}) > 5


def test_pictures_of_a_cycle_have_one_shape():
    with pytest.raises(ValueError, match=r"\(96, 96\) and \(64, 64\)"):
        warped_cycle(ring(20), ring(14, 64), 8)


def test_pictures_of_one_slice_are_found_whether_or_not_all_have_two():
    rng = np.random.default_rng(1)
    slices = [ndimage.gaussian_filter(rng.standard_normal((40, 40)), 3) for _ in range(4)]
    pictures = [slices[0], *(one + 0.02 * rng.standard_normal((40, 40)) for one in slices[1:] for _ in range(2))]
    pictures = [picture / slices[0].std() for picture in pictures]

    assert same_slice_pairs(np.stack(pictures).astype(np.float32)) == [1, 3, 5]


def test_a_measured_cine_is_cut_around_what_moves_and_fades_out(tmp_path):
    frames = np.full((6, 160, 200), 100, np.uint8)
    for number in range(6):
        frames[number, 90:110, 60 : 70 + 4 * number] = 200

    case = load_cine(write(tmp_path / "one.h5", image=frames))

    assert case.name == case.scan == "one"
    assert case.truth.shape == (6, SIDE, SIDE)
    assert case.truth.dtype == torch.float32
    assert float(case.truth.max()) == 1
    assert float(case.truth[:, [0, -1]].max()) < 0.01
    assert float(case.truth[:, :, [0, -1]].max()) < 0.01
    torch.testing.assert_close(case.truth[0, TAPER:20, TAPER:-TAPER], torch.full((10, SIDE - 2 * TAPER), 0.5))
    rows, columns = torch.nonzero(heart_box(case.truth), as_tuple=True)
    assert abs(float(rows.double().mean()) - SIDE / 2) < 12
    assert abs(float(columns.double().mean()) - SIDE / 2) < 20


def test_a_small_cine_is_not_cut(tmp_path):
    case = load_cine(write(tmp_path / "one.h5", image=in_bytes(beating_heart(5, 60, 140))))

    assert case.truth.shape == (5, 60, SIDE)


def test_a_cycle_is_made_of_the_middle_slice_of_a_patient(tmp_path):
    pictures = [ring(radius, seed=seed) for seed in (5, 6) for radius in (18, 20)]
    path = write(tmp_path / "set.h5", patient=in_bytes(np.stack(pictures)))

    case = load_cycle(path, "patient", 10)

    assert case.name == "patient/2"
    assert case.scan == "patient"
    assert case.truth.shape == (10, 96, 96)
    blood = (case.truth > 0.6).sum((1, 2))
    assert int(blood[0]) > 1.1 * int(blood[3])


@pytest.mark.parametrize("values", [
    np.ones((4, 4), np.uint8),
    np.zeros((3, 32, 32), np.uint8),
    -np.ones((3, 32, 32), np.float32),
    np.full((3, 32, 32), np.nan, np.float32),
    np.ones((3, 32, 32), np.complex64),
])  # fmt: skip
def test_what_holds_no_magnitudes_is_refused(tmp_path, values):
    with pytest.raises(EvaluationError, match=r"expected magnitudes \(frames, y, x\) called image"):
        load_cine(write(tmp_path / "one.h5", image=values))


def test_files_that_are_not_there_or_not_understood_are_refused(tmp_path):
    path = write(tmp_path / "set.h5", other=np.ones((3, 32, 32)))

    with pytest.raises(EvaluationError, match=r"missing\.h5 is not an HDF5 file"):
        load_cine(tmp_path / "missing.h5")
    with pytest.raises(EvaluationError, match="called image"):
        load_cine(path)
    with pytest.raises(EvaluationError, match="no two pictures"):
        load_cycle(write(tmp_path / "one.h5", p=np.random.default_rng(0).uniform(size=(3, 32, 32))), "p")


def test_the_heart_box_surrounds_what_moves_most():
    truth = torch.zeros(8, 50, 40)
    truth += torch.linspace(0, 0.01, 8)[:, None, None]
    truth[:, 20:32, 10:18] = torch.linspace(0, 1, 8)[:, None, None]

    box = heart_box(truth)

    assert box.dtype == torch.bool
    assert bool(box[22:30, 12:16].all())
    assert not bool(box[:20].any() or box[32:].any() or box[:, :10].any() or box[:, 18:].any())


def test_the_gradient_error_sees_motion_alone():
    truth = torch.from_numpy(beating_heart(6, 32, 32))

    assert temporal_gradient_error(truth + 0.3, truth) == pytest.approx(0, abs=1e-6)
    assert temporal_gradient_error(truth.mean(0).expand_as(truth), truth) == pytest.approx(1)
    with pytest.raises(ValueError, match="no motion"):
        temporal_gradient_error(truth, truth[:1].expand_as(truth))
    with pytest.raises(ValueError, match="no motion"):
        temporal_gradient_error(truth[:3], truth)


@pytest.mark.skipif(not CINE.exists(), reason=f"{CINE.name} is not here")
def test_the_measured_cine_is_understood():
    case = load_cine(CINE)

    assert case.truth.shape == (30, SIDE, SIDE)
    assert 100 < int(heart_box(case.truth).sum()) < SIDE**2 / 3


@pytest.mark.skipif(not SUNNYBROOK.exists(), reason=f"{SUNNYBROOK.name} is not here")
def test_a_patient_of_sunnybrook_gives_a_beating_heart():
    case = load_cycle(SUNNYBROOK, "SC-HYP-10", 12)

    assert case.truth.shape == (12, SIDE, SIDE)
    assert bool(torch.isfinite(case.truth).all())
    change = (case.truth - case.truth[0])[:, heart_box(case.truth)].square().mean(1)
    assert int(change.argmax()) == 4
    assert float(change[-1]) < 0.01 * float(change.max())
