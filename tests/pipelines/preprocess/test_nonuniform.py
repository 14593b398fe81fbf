from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.assembly.frame import NoiseCovariance, NoiseSource
from pipelines.errors import BudgetError, ReconstructionError
from pipelines.parameters import Parameters
from pipelines.preprocess.nonuniform import prepare_nonuniform
from pipelines.scan_header import Encoding, Space

NOISE_STD = 0.05


def parameters(**values: object) -> Parameters:
    return Parameters.model_validate(values)


def test_samples_are_whitened_to_unit_noise(make_nonuniform_group, rng):
    group = make_nonuniform_group(noise_std=NOISE_STD, noise_scan=True)
    empty = make_nonuniform_group(noise_std=0.0)
    noise = replace(group, kspace=group.kspace - empty.kspace)

    preparation = prepare_nonuniform(noise, parameters(), "cpu")

    kspace = preparation.prepared.kspace[0, :, 0].flatten(1)
    covariance = (kspace @ kspace.mH / kspace.shape[1]).numpy()
    # 9216 samples: each entry is known to 1 %; the noise scan has 4096.
    np.testing.assert_allclose(covariance, np.eye(len(kspace)), atol=0.08)
    assert preparation.prepared.noise_std == 1.0
    assert preparation.prepared.noise_is_measured
    assert preparation.warnings == []


def test_the_scale_brings_images_back_to_one_brightness(make_nonuniform_group):
    group = make_nonuniform_group(noise_std=NOISE_STD, noise_scan=True)
    slow = replace(group, headers=group.headers.copy())
    slow.headers["sample_time_us"] *= 4

    fast_scale, slow_scale = (prepare_nonuniform(each, parameters(), "cpu").signal_scale for each in (group, slow))

    torch.testing.assert_close(fast_scale, 2 * slow_scale)


def test_without_a_noise_scan_the_level_comes_from_the_edge_of_kspace(make_nonuniform_group):
    prepared = prepare_nonuniform(make_nonuniform_group(noise_std=NOISE_STD), parameters(), "cpu").prepared
    assert not prepared.noise_is_measured
    # An upper bound: some signal of the phantom's sharp edges is out there too.
    assert NOISE_STD * 0.95 < prepared.noise_std < NOISE_STD * 1.4


def test_switched_off_whitening_leaves_samples_alone(make_nonuniform_group):
    group = make_nonuniform_group(noise_std=NOISE_STD, noise_scan=True)
    prepared = prepare_nonuniform(group, parameters(whiten=False), "cpu").prepared
    np.testing.assert_allclose(prepared.kspace.numpy(), group.kspace)


def test_compression_keeps_nearly_all_of_the_signal(make_nonuniform_group):
    group = make_nonuniform_group(n_coils=12)
    prepared = prepare_nonuniform(group, parameters(coil_compression=6), "cpu").prepared
    assert prepared.kspace.shape[1] == 6
    assert prepared.calibration is not None
    assert prepared.calibration.shape[0] == 6
    kept = float(prepared.kspace.abs().square().sum()) / float(np.square(np.abs(group.kspace)).sum())
    assert 0.98 < kept <= 1.0001


def test_the_grid_and_the_calibration_are_those_of_the_recon_field_of_view(make_nonuniform_group):
    prepared = prepare_nonuniform(make_nonuniform_group(shape=(40, 52)), parameters(), "cpu").prepared
    assert prepared.trajectory is not None
    assert prepared.trajectory.shape == (40, 52)
    assert prepared.calibration is not None
    assert prepared.calibration.shape == (6, 1, 24, 24)


def test_the_group_is_not_changed(make_nonuniform_group):
    group = make_nonuniform_group(noise_std=NOISE_STD, noise_scan=True)
    kspace, trajectory = group.kspace.copy(), group.trajectory.copy()
    group.kspace.flags.writeable = group.trajectory.flags.writeable = False
    prepare_nonuniform(group, parameters(), "cpu")
    np.testing.assert_array_equal(group.kspace, kspace)
    np.testing.assert_array_equal(group.trajectory, trajectory)


def test_samples_that_are_not_finite_are_refused(make_nonuniform_group):
    group = make_nonuniform_group()
    group.kspace[0, 2, 0, 5, 7] = np.nan
    with pytest.raises(ReconstructionError, match="k-space holds values that are not finite"):
        prepare_nonuniform(group, parameters(), "cpu")


def test_what_lies_in_rows_without_a_readout_does_not_matter(make_nonuniform_group):
    group = make_nonuniform_group()
    group.counts[0, 0, 3] = 0
    clean = prepare_nonuniform(group, parameters(), "cpu").prepared
    group.kspace[:, :, :, 3] = np.nan
    dirty = prepare_nonuniform(group, parameters(), "cpu").prepared
    assert bool((clean.kspace == dirty.kspace).all())
    assert clean.trajectory is not None
    assert not bool(clean.trajectory.measured[0, 3].any())


def test_no_readout_is_refused(make_nonuniform_group):
    group = make_nonuniform_group()
    group.counts[:] = 0
    with pytest.raises(ReconstructionError, match="no readout was measured"):
        prepare_nonuniform(group, parameters(), "cpu")


def test_a_huge_image_is_refused(make_nonuniform_group):
    huge = Encoding(Space((4096, 4096, 1), (1.0, 1.0, 5.0)), Space((64, 64, 1), (9000.0, 9000.0, 5.0)))
    with pytest.raises(BudgetError):
        prepare_nonuniform(make_nonuniform_group(encoding=huge), parameters(), "cpu")


def test_a_noise_scan_of_other_coils_is_said_and_not_used(make_nonuniform_group, rng):
    group = make_nonuniform_group(noise=NoiseCovariance.of(np.ones((4, 3, 32), np.complex64), 20.0))
    preparation = prepare_nonuniform(group, parameters(), "cpu")
    assert not preparation.prepared.noise_is_measured
    assert any("3 coils" in warning for warning in preparation.warnings)


def test_a_noise_scan_that_promises_too_much_noise_is_doubted(make_nonuniform_group, rng):
    group = make_nonuniform_group(noise_std=NOISE_STD, noise_scan=True)
    loud = replace(group, noise=replace(group.noise, sums=group.noise.sums * 16))
    assert any("too large" in warning for warning in prepare_nonuniform(loud, parameters(), "cpu").warnings)


def test_a_given_noise_level_is_that_of_the_readouts(make_nonuniform_group):
    group = make_nonuniform_group(noise_std=NOISE_STD)
    preparation = prepare_nonuniform(group, parameters(noise_level=NOISE_STD), "cpu")
    assert preparation.noise_source is NoiseSource.GIVEN
    assert preparation.prepared.noise_std == NOISE_STD
    assert preparation.warnings == []


def test_what_only_grids_have_is_said_to_do_nothing(make_nonuniform_group):
    preparation = prepare_nonuniform(make_nonuniform_group(), parameters(partial_fourier="pocs"), "cpu")
    assert any("partial_fourier" in warning for warning in preparation.warnings)


def test_an_object_beyond_the_field_of_view_is_said(make_nonuniform_group):
    group = make_nonuniform_group(n=72)
    space = Space((48, 48, 1), (96.0, 96.0, 5.0))
    small = replace(group, scan=replace(group.scan, encodings=(Encoding(space, space),)))
    assert any("reach beyond" in warning for warning in prepare_nonuniform(small, parameters(), "cpu").warnings)
    assert prepare_nonuniform(group, parameters(), "cpu").warnings == []
