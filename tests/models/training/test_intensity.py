"""The intensity spline: monotone, exact where it must be, the same in torch and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from models.training.intensity import IntensityMap, fit_intensity

CURVE = IntensityMap((0.0, 0.2, 0.5, 0.8, 1.0), (0.0, 0.1, 0.55, 0.95, 1.3))
increments = st.lists(st.floats(0.05, 2.0), min_size=2, max_size=6)


def evaluate(curve: IntensityMap, values: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    image = torch.from_numpy(values.astype(np.float32))
    mapped, slope = curve(image, torch.ones_like(image), scale)
    return mapped.numpy(), slope.numpy()


@settings(max_examples=40, deadline=None)
@given(st.data(), increments)
def test_the_map_and_its_slope_are_scipy_s_between_the_knots(data: st.DataObject, steps: list[float]) -> None:
    rises = data.draw(st.lists(st.floats(0.05, 2.0), min_size=len(steps), max_size=len(steps)))
    curve = IntensityMap((0.0, *np.cumsum(steps).tolist()), (0.0, *np.cumsum(rises).tolist()))
    x = np.linspace(0, curve.inputs[-1] * (1 - 1e-6), 301)
    spline = PchipInterpolator(curve.inputs, curve.outputs)
    mapped, slope = evaluate(curve, x)
    # The deviation of a float32 intensity from the float64 one, times slopes of up to 3 * 2 / 0.05.
    tolerance = 2e-5 * curve.inputs[-1] * max(1.0, float(spline.derivative()(x).max()))
    assert mapped == pytest.approx(spline(x), abs=tolerance)
    assert np.median(np.abs(slope - spline.derivative()(x))) < 1e-4


@settings(max_examples=40, deadline=None)
@given(st.data(), increments)
def test_the_map_is_monotone_and_its_slope_not_negative(data: st.DataObject, steps: list[float]) -> None:
    rises = data.draw(st.lists(st.floats(0.05, 2.0), min_size=len(steps), max_size=len(steps)))
    curve = IntensityMap((0.0, *np.cumsum(steps).tolist()), (0.0, *np.cumsum(rises).tolist()))
    mapped, slope = evaluate(curve, np.linspace(0, 1.5 * curve.inputs[-1], 1001))
    assert (np.diff(mapped) >= -1e-6 * curve.outputs[-1]).all()
    assert (slope >= -1e-5).all()


def test_beyond_the_last_knot_differences_stay_as_they_are() -> None:
    mapped, slope = evaluate(CURVE, np.array([1.0, 1.25, 3.0]))
    assert mapped == pytest.approx([1.3, 1.55, 3.3], abs=1e-6)
    assert slope[1:].tolist() == [1, 1]


def test_a_deviation_is_multiplied_by_the_slope() -> None:
    x = np.linspace(0.01, 0.99, 50)
    step = 1e-3
    image = torch.from_numpy(x.astype(np.float32))
    deviation = torch.linspace(1, 2, 50)
    _, mapped = CURVE(image, deviation, 1.0)
    spline = PchipInterpolator(CURVE.inputs, CURVE.outputs)
    difference = (spline(x + step) - spline(x - step)) / (2 * step)
    assert mapped.numpy() == pytest.approx(deviation.numpy() * difference, abs=0.02)


@given(st.floats(1e-6, 1e6))
@settings(max_examples=20, deadline=None)
def test_the_map_commutes_with_a_change_of_units(unit: float) -> None:
    image, deviation = torch.linspace(0, 1.5, 97), torch.linspace(0.1, 0.2, 97)
    mapped, spread = CURVE(image, deviation, 1.0)
    scaled, scaled_spread = CURVE(image * unit, deviation * unit, unit)
    assert (scaled / unit).numpy() == pytest.approx(mapped.numpy(), abs=1e-5)
    assert (scaled_spread / unit).numpy() == pytest.approx(spread.numpy(), abs=1e-4)


def test_data_that_agree_give_the_identity() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((40, 40))
    curve = fit_intensity([(values, values), (0.5 * values, 0.5 * values)])
    assert curve.outputs == pytest.approx(curve.inputs, abs=1e-12)
    x = np.linspace(0, 2, 100)
    mapped, slope = evaluate(curve, x)
    assert mapped == pytest.approx(x, abs=1e-6)
    assert slope == pytest.approx(np.ones(100), abs=1e-6)


def test_a_known_map_is_found_again() -> None:
    rng = np.random.default_rng(1)
    images = [0.05 + rng.random((50, 50)) for _ in range(3)]
    knots = fit_intensity([(image, image) for image in images]).inputs
    true = IntensityMap(knots, tuple((np.asarray(knots) ** 1.3 * 0.9).tolist()))
    spline = PchipInterpolator(true.inputs, true.outputs)

    def reference(image: np.ndarray) -> np.ndarray:
        return spline(np.minimum(image, knots[-1])) + np.maximum(image - knots[-1], 0)

    found = fit_intensity([(image, reference(image)) for image in images])
    assert found.outputs == pytest.approx(true.outputs, abs=1e-6)


def test_a_map_fitted_to_a_loss_of_contrast_mends_images_not_seen() -> None:
    rng = np.random.default_rng(2)

    def pair() -> tuple[np.ndarray, np.ndarray]:
        truth = rng.random((64, 64))
        return 0.9 * truth - 0.1 * truth**2 + 0.005 * rng.standard_normal((64, 64)) + 0.03, truth

    curve = fit_intensity([pair() for _ in range(4)])
    image, truth = pair()
    mapped, _ = evaluate(curve, image)
    assert np.abs(mapped - truth).mean() < 0.25 * np.abs(image - truth).mean()


def test_the_map_stays_monotone_where_data_are_not() -> None:
    x = np.random.default_rng(3).random((60, 60))
    curve = fit_intensity([(x, 1.0 - 0.5 * x)])
    assert (np.diff(curve.outputs) > 0).all()


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [((0.0,), (0.0,)), ((0.0, 1.0), (0.0, 0.5, 1.0)), ((0.0, 1.0), (0.1, 1.0)), ((0.0, 1.0, 0.5), (0.0, 0.1, 0.2)),
     ((0.0, 0.5, 1.0), (0.0, 0.4, 0.4)), ((0.0, 1.0), (0.0, float("nan")))],
)  # fmt: skip
def test_knots_that_make_no_monotone_map_are_refused(inputs: tuple[float, ...], outputs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"inputs|outputs"):
        IntensityMap(inputs, outputs)


def test_images_without_spread_or_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="spread"):
        fit_intensity([(np.ones((20, 20)), np.ones((20, 20)))])
    with pytest.raises(ValueError, match="at least 64 pixels"):
        fit_intensity([(np.ones((2, 2)), np.ones((2, 2)))])
    with pytest.raises(ValueError, match="no images"):
        fit_intensity([])
    with pytest.raises(ValueError, match="scale"):
        CURVE(torch.ones(3), torch.ones(3), 0.0)
