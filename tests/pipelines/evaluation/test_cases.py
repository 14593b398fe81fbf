import h5py
import numpy as np
import pytest
import torch

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.frame import Completion, Group, Grouping, GroupKey
from pipelines.errors import EvaluationError
from pipelines.evaluation.cases import Case, load_cases, noise_level_of, plane_of, truth_of, undersample
from pipelines.mrd import ACQUISITION_HEADER
from pipelines.operators.fourier import to_image, to_kspace
from pipelines.parameters import Parameters, ZeroFilledParameters
from pipelines.phantom import birdcage_coils, head_phantom
from pipelines.preprocess.nonuniform import prepare_nonuniform
from pipelines.preprocess.preparation import prepare
from pipelines.recon.zero_filled import ZeroFilled
from pipelines.registry import find
from pipelines.scan_header import Encoding, ScanHeader, Space, TrajectoryType, parse_scan_header
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Pattern, Protocol

CARTESIAN = [
    "full",
    "cartesian4_acl8",
    "cartesian4_acl4_swapped",
    "equispaced4_acl8",
    "cartesian8_acl4",
    "gaussian8",
    "poisson8",
]


SHAPE = (208, 200)
"""The smaller side has eight autocalibration lines at 4 %, the fewest that make a calibration region."""


def head(path, shape) -> Case:
    with h5py.File(path, "w") as file:
        file["subject"] = np.round(255 * head_phantom(1, *shape)).astype(np.uint8)
    return next(load_cases(path, coils=4))


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    return head(tmp_path_factory.mktemp("cases") / "head.h5", SHAPE)


def group_of(prepared, encoding) -> Group:
    """The same samples as assembly would hand them on."""
    headers = np.zeros(1, ACQUISITION_HEADER)
    headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = (1, 0.0, 0), (0, 1, 0), (0, 0, 1)
    trajectory = prepared.trajectory
    return Group(
        key=GroupKey(0, 0, 0, 0, 0.0, 0),
        kspace=prepared.kspace.numpy(),
        counts=prepared.counts.numpy(),
        calibration_lines=np.zeros(prepared.counts.shape[1:], bool),
        readout_extent=(0, prepared.kspace.shape[-1]),
        headers=headers,
        scan=ScanHeader((encoding,)),
        completion=Completion.FLAG,
        trajectory=None if trajectory is None else trajectory.positions.numpy(),
    )


@pytest.mark.parametrize("name", [*CARTESIAN, "radial11"])
def test_a_case_is_prepared_as_the_server_prepares_such_a_scan(case, name):
    prepared = undersample(case, name, 0.02, 1)
    _, _, z, y, x = prepared.kspace.shape
    sizes = (x, y, z) if prepared.trajectory is None else (*prepared.trajectory.shape[::-1], 1)
    space = Space(sizes, tuple(float(n) for n in sizes))
    kind = TrajectoryType.CARTESIAN if prepared.trajectory is None else TrajectoryType.RADIAL
    parameters = Parameters(whiten=False, noise_level=prepared.noise_std, trajectory_units="cycles_per_pixel")

    road = prepare if prepared.trajectory is None else prepare_nonuniform
    expected = road(group_of(prepared, Encoding(space, space, kind)), parameters, "cpu").prepared

    torch.testing.assert_close(prepared.kspace, expected.kspace)
    assert expected.calibration is not None
    torch.testing.assert_close(prepared.calibration, expected.calibration)
    torch.testing.assert_close(prepared.counts, expected.counts)
    assert torch.equal(prepared.readout_sampled, expected.readout_sampled)
    assert prepared.noise_std == pytest.approx(expected.noise_std)
    assert prepared.noise_is_measured == expected.noise_is_measured
    if expected.trajectory is not None:
        torch.testing.assert_close(prepared.trajectory.positions, expected.trajectory.positions)
        assert prepared.trajectory.shape == expected.trajectory.shape
        assert torch.equal(prepared.trajectory.measured, expected.trajectory.measured)


def test_a_simulated_scan_that_was_streamed_and_assembled_gives_the_same_samples(case):
    protocol = Protocol(
        n_coils=4, pattern=Pattern.FULL, oversampling=1, noise_std=0, noise_readouts=0, field_of_view_mm=SHAPE[::-1]
    )
    scan = simulate(np.ones(SHAPE, np.complex64), protocol, maps=case.coil_images.numpy()[None])
    assembler = Assembler(parse_scan_header(scan.header), Grouping.SLICE, HeapSlots())
    groups = [group for batch in scan.batches for group in assembler.add(batch)] + assembler.finish()
    streamed = prepare(groups[0], Parameters(whiten=False), "cpu").prepared

    prepared = undersample(case, "full", 0.0, 0)

    torch.testing.assert_close(prepared.kspace, streamed.kspace, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prepared.calibration, streamed.calibration, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prepared.counts, streamed.counts)


def test_truth_is_the_magnitude_that_was_stored(case):
    stored = np.round(255 * head_phantom(1, *SHAPE))[0]

    np.testing.assert_allclose(case.truth, stored / stored.max(), atol=1e-5)
    torch.testing.assert_close(case.coil_images.abs().square().sum(0).sqrt(), case.truth, atol=1e-5, rtol=0)
    assert case.coil_images.shape == (4, *SHAPE)
    assert case.noise_std == 0


@pytest.mark.parametrize("name", ["full", "cartesian4_acl8", "cartesian4_acl8_swapped", "gaussian8"])
def test_images_without_noise_lie_on_the_truth(case, name):
    full = undersample(case, name, 0.0, 0)
    kspace = to_kspace(case.coil_images)
    measured = full.kspace[0, ..., 0] if name == "gaussian8" else full.kspace[0, :, 0]
    kspace = kspace.mT if "swapped" in name else kspace

    is_measured = (measured != 0).any(0)
    torch.testing.assert_close(measured[:, is_measured], kspace[:, is_measured])

    image = ZeroFilled(ZeroFilledParameters(), "cpu")(full).image
    assert plane_of(image)[0].shape == truth_of(case, name).shape
    if name == "full":
        torch.testing.assert_close(plane_of(image)[0].abs(), truth_of(case, name), atol=1e-5, rtol=0)


def test_swapped_patterns_phase_encode_the_other_axis(case):
    straight = undersample(case, "cartesian4_acl8", 0.02, 5)
    swapped = undersample(case, "cartesian4_acl8_swapped", 0.02, 5)

    assert straight.kspace.shape == (1, 4, 1, 208, 200)
    assert swapped.kspace.shape == (1, 4, 1, 200, 208)
    torch.testing.assert_close(truth_of(case, "cartesian4_acl8_swapped"), case.truth.mT)


def test_noise_is_the_same_whatever_the_pattern(case):
    clean, full = undersample(case, "full", 0.0, 7), undersample(case, "full", 0.05, 7)
    noise = (full.kspace - clean.kspace)[0, :, 0]

    for name in CARTESIAN:
        noisy, silent = undersample(case, name, 0.05, 7), undersample(case, name, 0.0, 7)
        added = (noisy.kspace - silent.kspace)[0]
        added = added[..., 0] if added.shape[-1] == 1 else added[:, 0]
        added = added.mT if "swapped" in name else added
        where = added.abs().sum(0) > 0
        assert where.any()
        torch.testing.assert_close(added[:, where], noise[:, where], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["full", "radial11"])
def test_noise_has_the_level_asked_for(case, name):
    noisy, silent = undersample(case, name, 0.05, 7), undersample(case, name, 0.0, 7)

    level = (noisy.kspace - silent.kspace).abs().square().mean().sqrt()

    assert float(level) == pytest.approx(0.05, rel=0.03)
    assert noisy.noise_std == pytest.approx(0.05 * float(case.truth.max()))
    assert noisy.noise_is_measured


def test_the_seed_decides_noise_and_pattern(case):
    first, again, other = (undersample(case, "cartesian4_acl8", 0.05, seed) for seed in (1, 1, 2))

    assert torch.equal(first.kspace, again.kspace)
    assert not torch.equal(first.kspace, other.kspace)
    assert not torch.equal(first.counts, other.counts)


def test_too_few_central_lines_are_no_calibration(tmp_path):
    small = head(tmp_path / "small.h5", (72, 64))

    assert undersample(small, "cartesian8_acl4", 0.0, 3).calibration is None


@pytest.mark.parametrize("name", ["cartesian4_acl8", "cartesian4_acl8_swapped", "gaussian8", "radial11"])
def test_sense_comes_near_the_truth(case, name):
    prepared = undersample(case, name, 0.001, 0)
    entry = find("sense")

    image = plane_of(entry.load(entry.parse({}), "cpu")(prepared).image)[0].abs()

    truth = truth_of(case, name)
    plain = plane_of(ZeroFilled(ZeroFilledParameters(), "cpu")(prepared).image)[0].abs()
    error, plain_error = (float(torch.linalg.vector_norm(each - truth)) for each in (image, plain))
    assert error < 0.3 * float(torch.linalg.vector_norm(truth))
    assert error < 0.8 * plain_error


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_that_is_none_is_refused(case, noise):
    with pytest.raises(EvaluationError, match="noise"):
        undersample(case, "full", noise, 0)


def test_noise_in_measured_arrays_is_estimated_and_added_to(rng):
    signal = torch.from_numpy(birdcage_coils(4, (96, 96)) * head_phantom(1, 96, 96)[0])
    noise = torch.from_numpy(
        (rng.standard_normal((4, 96, 96)) + 1j * rng.standard_normal((4, 96, 96))).astype(np.complex64) / 2**0.5
    )
    images = signal + 0.1 * noise

    level = noise_level_of(images)

    assert level == pytest.approx(0.1, rel=0.15)
    kspace = to_kspace(images)
    kspace[:, :, :24] = 0
    assert noise_level_of(to_image(kspace)) == pytest.approx(level, rel=0.15)
    case = Case("a", "a", images, torch.ones((96, 96)), level)
    assert undersample(case, "full", level, 0).noise_std == pytest.approx(2**0.5 * level)
    assert not undersample(case, "full", 0.0, 0).noise_is_measured
