"""`joint_ipalm` of phantoms: nearer to the truth than what it begins with, and blind to what must not count."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.catalogue import use_directory
from models.energy import make_energy
from models.errors import UnknownModelError
from models.store import save_model
from pipelines.errors import ModelUnavailableError, ParameterError, ReconstructionError
from pipelines.parameters import JointIpalmParameters, ZeroFilledParameters
from pipelines.recon import joint_ipalm
from pipelines.recon.joint_ipalm import JointIpalm
from pipelines.recon.reconstruction import Prepared, Reconstructed, UncertaintyKind
from pipelines.recon.zero_filled import ZeroFilled
from pipelines.registry import find
from tests import tiny_model
from tests.pipelines.recon import joint_scenes

CONFIGURATION = {"stages": 2, "features": 8, "growth": 1.0, "blocks": 1}


def run(prepared: Prepared, **parameters: object) -> Reconstructed:
    values = {"prior": "total_variation", "iterations": 30, **parameters}
    return JointIpalm(JointIpalmParameters.model_validate(values), "cpu")(prepared)


def zero_filled(prepared: Prepared) -> Tensor:
    return ZeroFilled(ZeroFilledParameters.model_validate({}), "cpu")(prepared).image


def scaled(prepared: Prepared, factor: complex) -> Prepared:
    calibration = None if prepared.calibration is None else prepared.calibration * factor
    return dataclasses.replace(
        prepared, kspace=prepared.kspace * factor, calibration=calibration, noise_std=prepared.noise_std * abs(factor)
    )


def agree(one: Tensor, other: Tensor, bound: float) -> bool:
    return float((one - other).abs().max()) <= bound * float(other.abs().max())


def test_fully_measured_low_noise_data_give_the_truth():
    prepared, truth = joint_scenes.cartesian(6, noise_std=0.002)
    result = run(prepared)
    # Total variation rounds off what a pixel of noise 0.0045 may hide.
    assert joint_scenes.nrmse(result.image, truth) < 0.005
    assert (result.image.shape, result.deviation.shape) == (truth.shape, truth.shape)
    assert result.kind is UncertaintyKind.POSTERIOR
    assert result.calibration == "none"


SCENES = {
    "R = 3": (lambda: joint_scenes.cartesian(acceleration=3), 0.5),
    "odd sizes": (lambda: joint_scenes.cartesian(acceleration=3, rows=47, columns=51), 0.5),
    "one coil": (lambda: joint_scenes.cartesian(1, acceleration=2), 0.5),
    "one coil without calibration": (lambda: joint_scenes.cartesian(1, acceleration=2, calibration=0), 0.9),
    "no calibration": (lambda: joint_scenes.cartesian(acceleration=2, calibration=0), 0.9),
    "frames": (lambda: joint_scenes.cartesian(acceleration=3, frames=3), 0.5),
    "both phase encodings": (joint_scenes.volume, 0.6),
    "radial": (lambda: joint_scenes.radial(spokes=20), 0.4),
    "radial without calibration": (lambda: joint_scenes.radial(spokes=20, has_calibration=False), 0.4),
    "radial, turned": (lambda: joint_scenes.radial(spokes=20, frames=2, turned=True), 0.5),
}


@pytest.mark.parametrize("name", SCENES)
def test_it_is_nearer_to_the_truth_than_what_it_begins_with(name: str):
    make, part = SCENES[name]
    prepared, truth = make()
    result = run(prepared)
    assert result.image.shape == truth.shape
    assert joint_scenes.nrmse(result.image, truth) < part * joint_scenes.nrmse(zero_filled(prepared), truth)
    assert bool((result.deviation > 0).all())
    says_so = any("No calibration lines" in warning for warning in result.warnings)
    assert says_so == ("calibration" in name)


def test_joint_maps_explain_the_data_better_than_fixed_ones():
    prepared, truth = joint_scenes.cartesian(acceleration=3)
    joint, fixed = (run(prepared, iterations=100, maps=maps, phase="smooth") for maps in ("joint", "fixed"))
    assert float(joint.details["ReconResidual"]) < float(fixed.details["ReconResidual"])
    # Noise alone is 1; what the image and maps take of it lowers the residual.
    assert 0.8 < float(joint.details["ReconResidual"]) < 1.2
    assert joint_scenes.nrmse(joint.image, truth) < joint_scenes.nrmse(fixed.image, truth)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_a_power_of_two_only_multiplies_image_and_deviation(factor: float):
    prepared, _ = joint_scenes.cartesian(acceleration=3)
    one, other = run(prepared), run(scaled(prepared, factor))
    assert torch.equal(other.image, one.image * factor)
    assert torch.equal(other.deviation, one.deviation * factor)
    assert one.details == other.details


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_any_factor_only_multiplies_the_image(factor: float):
    prepared, _ = joint_scenes.cartesian(acceleration=3)
    # Rounding decides where steps are refused, and so where thirty iterations end.
    assert agree(run(scaled(prepared, factor)).image / factor, run(prepared).image, 0.01)


def test_a_global_phase_turns_the_image_and_leaves_its_magnitude():
    prepared, truth = joint_scenes.cartesian(acceleration=3)
    turn = complex(0.6, -0.8)
    one, other = run(prepared), run(scaled(prepared, turn))
    assert agree(other.image.abs(), one.image.abs(), 0.01)
    inside = truth.abs() > 0.1
    assert agree(other.image[inside] / turn, one.image[inside], 0.01)


def test_smooth_phase_of_the_image_comes_back_with_it():
    prepared, truth = joint_scenes.cartesian(coils=1, noise_std=0.005)
    result = run(prepared)
    inside = truth.abs() > 0.1
    overlap = (result.image * truth.conj())[inside] / (result.image * truth)[inside].abs()
    # One coil: its phase and the image's are one. Mean error of the angle below 0.1.
    assert float(overlap.real.mean()) > 0.995


def test_zero_data_give_a_zero_image_and_numbers_throughout():
    for prepared, _ in (joint_scenes.cartesian(rows=24, columns=20), joint_scenes.radial(spokes=12, n=24)):
        empty = scaled(prepared, 0)
        for noise_std in (prepared.noise_std, 0.0):
            result = run(dataclasses.replace(empty, noise_std=noise_std), extra_series="coil_maps,posterior_samples")
            assert not bool(result.image.any())
            for values in (result.deviation, *(torch.view_as_real(e.images + 0j) for e in result.extras)):
                assert bool(torch.isfinite(values).all())


def test_no_noise_at_all_is_no_reason_for_numbers_that_are_none():
    prepared, truth = joint_scenes.cartesian(rows=24, columns=20, noise_std=0.001)
    result = run(dataclasses.replace(prepared, noise_std=0.0))
    assert joint_scenes.nrmse(result.image, truth) < 0.05
    assert bool(torch.isfinite(result.deviation).all())
    assert float(result.details["ReconResidual"]) > 1


def test_nothing_measured_is_an_error():
    prepared, _ = joint_scenes.cartesian(rows=24, columns=20)
    with pytest.raises(ReconstructionError, match="no line of k-space was measured"):
        run(dataclasses.replace(prepared, counts=0 * prepared.counts))
    with pytest.raises(ReconstructionError, match="not finite"):
        run(dataclasses.replace(prepared, kspace=prepared.kspace * float("nan")))


def test_the_same_data_give_the_same_bytes():
    prepared, _ = joint_scenes.cartesian(rows=32, columns=30, acceleration=2, frames=2)
    one, other = (run(prepared, estimate="mmse", extra_series="posterior_samples") for _ in range(2))
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.deviation, other.deviation)
    assert torch.equal(one.extras[0].images, other.extras[0].images)


def test_what_is_worked_on_side_by_side_does_not_change_a_plane(monkeypatch: pytest.MonkeyPatch):
    prepared, _ = joint_scenes.cartesian(rows=32, columns=30, acceleration=2, frames=3)
    together = run(prepared)
    monkeypatch.setattr(joint_ipalm, "MOST_VALUES_CPU", 1)
    apart = run(prepared)
    assert agree(apart.image, together.image, 0.01)
    assert agree(apart.deviation, together.deviation, 0.05)

    brighter = dataclasses.replace(prepared, kspace=prepared.kspace.clone())
    brighter.kspace[1] *= 0.7
    # The largest value of all, which everything is divided by, stays the same; so does all that frame 0 sees.
    assert torch.equal(run(brighter).image[0], apart.image[0])
    assert torch.equal(run(brighter).deviation[0], apart.deviation[0])


def test_deviation_grows_with_noise():
    means = [
        float(run(joint_scenes.cartesian(acceleration=2, noise_std=noise)[0]).deviation.mean())
        for noise in (0.01, 0.03, 0.06)
    ]
    assert means[0] * 1.1 < means[1]
    assert means[1] * 1.1 < means[2]


def test_mean_of_the_posterior_is_near_the_most_probable_image():
    prepared, truth = joint_scenes.cartesian(acceleration=3)
    most_probable, mean = run(prepared), run(prepared, estimate="mmse")
    assert mean.details["ReconEstimate"] == "mmse"
    assert not torch.equal(mean.image, most_probable.image)
    assert joint_scenes.nrmse(mean.image, truth) < 1.2 * joint_scenes.nrmse(most_probable.image, truth)
    assert torch.equal(mean.deviation, most_probable.deviation)


@pytest.mark.parametrize("limit", [1e-9, 3600])
def test_a_time_limit_costs_sharpness_but_neither_image_nor_uncertainty(limit: float):
    prepared, truth = joint_scenes.cartesian(rows=32, columns=32, acceleration=2, frames=2)
    result = run(prepared, time_limit_s=limit, uncertainty="langevin" if limit < 1 else "quick", estimate="mmse")
    is_short = limit < 1
    uncalibrated, *others = result.warnings
    assert "not calibrated" in uncalibrated
    assert [("iterations" in text, "sampling" in text) for text in others] == (
        [(True, False), (False, True)] if is_short else []
    )
    assert result.details["ReconPosterior"].startswith("quick")
    assert bool(torch.isfinite(result.deviation).all())
    assert joint_scenes.nrmse(result.image, truth) < (0.5 if is_short else 0.1)


def test_extra_series_have_the_shape_of_the_volume_and_fit_together():
    prepared, truth = joint_scenes.volume()
    result = run(prepared, extra_series="coil_maps, posterior_samples")
    maps, samples = result.extras
    assert (maps.name, samples.name) == ("coil_maps", "posterior_samples")
    assert maps.images.shape == (1, 4, 12, 16, 10)
    assert samples.images.shape == (1, 4, 12, 16, 10)
    torch.testing.assert_close(maps.images.abs().square().sum(1).sqrt(), torch.ones(1, 12, 16, 10))
    assert samples.in_image_units
    assert not maps.in_image_units
    apart = samples.images - result.image.abs()[:, None]
    # Samples scatter about the image as the deviation says.
    assert float(apart.square().mean().sqrt() / result.deviation.square().mean().sqrt()) == pytest.approx(1, abs=0.5)
    assert run(prepared, extra_series="").extras == ()
    assert truth.shape == (1, 12, 16, 10)


def test_coil_maps_times_the_complex_image_are_the_coil_images():
    prepared, truth = joint_scenes.cartesian(noise_std=0.002)
    images, _ = joint_scenes.coil_images(4, 64, 64)
    result = run(prepared, extra_series="coil_maps")
    shown = result.extras[0].images * result.image[:, None]
    inside = (truth.abs() > 0.1)[:, None].expand_as(images)
    assert joint_scenes.nrmse(shown[inside] - images[inside] + 1, torch.ones_like(images[inside])) < 0.05


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "../energy"}, "model"),
        ({"prior": "wavelets"}, "prior"),
        ({"iterations": 4}, "iterations"),
        ({"iterations": "many"}, "iterations"),
        ({"smoothness": 0}, "smoothness"),
        ({"extra_series": "k_space"}, "extra_series"),
        ({"time_limit_s": -1}, "time_limit_s"),
        ({"data_weight": 0}, "data_weight"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_parameters_out_of_range_are_named(values: dict[str, object], message: str):
    with pytest.raises(ParameterError, match=message):
        find("joint_ipalm").parse(values)


def test_partial_fourier_is_said_to_do_nothing():
    prepared, _ = joint_scenes.cartesian(rows=24, columns=20)
    assert any("partial_fourier does nothing" in text for text in run(prepared, partial_fourier="pocs").warnings)


def test_an_unknown_model_has_a_code():
    entry = find("joint_ipalm")
    with pytest.raises(ModelUnavailableError, match="energy-nobody") as caught:
        entry.load(entry.parse({"model": "energy-nobody"}), "cpu")
    assert caught.value.code == "model_unavailable"
    assert isinstance(caught.value.__cause__, UnknownModelError)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory of models that is in use."""
    path = tmp_path / "models"
    path.mkdir()
    use_directory(path)
    yield path
    use_directory(None)


def save_energy(directory: Path, **changes: object) -> str:
    """An energy of random weights, near zero for any image: what its card says is what counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        tensors = make_energy(**CONFIGURATION).state_dict()
    tensors["last.weight"] *= 0.1
    draft = tiny_model.make_draft(name="tiny-energy", architecture="energy", configuration=CONFIGURATION, **changes)
    save_model(directory, draft, tensors)
    return "tiny-energy"


WIDE = {"energy_per_pixel": [0, 1e6], "data_residual": [0, 1e6]}
NARROW = {"energy_per_pixel": [0, 1e6], "data_residual": [1e5, 1e6]}


def test_a_learned_energy_reconstructs_and_is_named(directory: Path):
    prepared, truth = joint_scenes.cartesian(rows=32, columns=30, acceleration=2)
    result = run(prepared, prior="energy", model=save_energy(directory, domain=WIDE))
    assert result.details["ReconModel"] == "tiny-energy"
    assert result.details["ReconDomain"] == "inside"
    assert joint_scenes.nrmse(result.image, truth) < 0.5


def test_a_pipeline_that_was_loaded_in_inference_mode_has_gradients(directory: Path):
    prepared, _ = joint_scenes.cartesian(rows=32, columns=30, acceleration=2)
    name = save_energy(directory, domain=WIDE)
    entry = find("joint_ipalm")
    with torch.inference_mode():
        loaded = entry.load(entry.parse({"model": name, "iterations": 5}), "cpu")
        result = loaded(prepared)
    assert bool(torch.isfinite(result.image.abs()).all())


def test_rounding_does_not_decide_the_deviation_of_a_learned_energy(directory: Path):
    prepared, _ = joint_scenes.cartesian(rows=32, columns=30, acceleration=2)
    model = save_energy(directory)
    one, other = (run(data, prior="energy", model=model).deviation for data in (prepared, scaled(prepared, 1e6)))
    assert agree(other / 1e6, one, 0.01)


def test_the_card_scales_deviations_of_its_mode_only(directory: Path):
    prepared, _ = joint_scenes.cartesian(rows=32, columns=30, acceleration=2)
    plain = run(prepared, prior="energy", model=save_energy(directory))
    record = {"pipeline": "joint_ipalm", "mode": "quick", "factor": 2.0, "floor": 0.01, "level": 0.9, "n_scans": 7}
    model = save_energy(directory, calibration=[record])
    found = run(prepared, prior="energy", model=model)
    assert found.calibration == "conformal over 7 scans: factor 2, floor 0.01"
    floor = found.deviation - 2 * plain.deviation
    torch.testing.assert_close(floor, floor.mean().expand_as(floor), rtol=1e-3, atol=0)
    assert float(floor.mean()) > 0
    assert plain.calibration == "none"


@pytest.mark.parametrize("data_weight", [0.25, 4.0])
def test_residual_is_that_of_the_measured_noise_whatever_the_weights(directory: Path, data_weight: float):
    prepared, _ = joint_scenes.cartesian(rows=32, columns=30)
    model = save_energy(directory, domain=WIDE)
    result = run(prepared, prior="energy", model=model, data_weight=data_weight, prior_weight=0)
    assert 0.5 < float(result.details["ReconResidual"]) < 1.6
    assert float(result.details["ReconEnergyPerPixel"]) > 0


@pytest.mark.parametrize("instead", ["mark", "total_variation", "sense"])
def test_outside_the_domain_what_was_asked_for_takes_over(directory: Path, instead: str):
    prepared, truth = joint_scenes.cartesian(rows=32, columns=30, acceleration=2)
    result = run(prepared, prior="energy", model=save_energy(directory, domain=NARROW), outside_domain=instead)
    assert result.details["ReconDomain"] == "outside"
    assert result.details["ReconDomainReason"] == "data_residual"
    assert result.details.get("ReconInstead", "mark") == instead
    assert ("ReconModel" in result.details) == (instead == "mark")
    assert result.details.get("ReconInsteadOf", "").startswith("tiny-energy") == (instead != "mark")
    assert result.stages_s["uncertainty"] > 0
    assert result.kind is (UncertaintyKind.NOISE if instead == "sense" else UncertaintyKind.POSTERIOR)
    assert joint_scenes.nrmse(result.image, truth) < 0.5


def test_where_sense_cannot_take_over_the_marked_image_stays_with_a_warning(directory: Path):
    prepared, _ = joint_scenes.cartesian(rows=32, columns=30, acceleration=2, calibration=0)
    model = save_energy(directory, domain=NARROW)
    result = run(prepared, prior="energy", model=model, outside_domain="sense")
    assert result.details["ReconModel"] == "tiny-energy"
    assert any("sense cannot replace it" in warning for warning in result.warnings)


def test_phase_that_is_not_smooth_is_explained_where_it_is_allowed():
    prepared, truth = joint_scenes.cartesian(acceleration=2, phase_spots=True)
    free, smooth = (run(prepared, iterations=100, phase=phase) for phase in ("any", "smooth"))
    assert float(free.details["ReconResidual"]) < 1.2 < float(smooth.details["ReconResidual"])
    assert joint_scenes.nrmse(free.image, truth) < 0.8 * joint_scenes.nrmse(smooth.image, truth)
