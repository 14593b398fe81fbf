"""Pictures: orientation, pairing, comparison, and that what is drawn is what was measured."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.mrd import IMAGE_HEADER, Image
from pipelines.simulated_protocol import Geometry
from server.errors import FileError
from server.gallery import compare_pairs, key_of, pair_images, write_gallery
from server.pictures import turn, write_sampling

CORONAL_ALONG_THE_LEG = Geometry((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
SAGITTAL = Geometry((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0))
AXIAL_READ_BACKWARDS = Geometry((0.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))


def an_image(
    pixels: NDArray[np.float32], *, slice_number: int = 0, deviation: bool = False, geometry: Geometry | None = None
) -> Image:
    geometry = geometry or Geometry()
    header = np.zeros((), IMAGE_HEADER)
    header["matrix_size"], header["channels"] = (pixels.shape[1], pixels.shape[0], 1), 1
    header["field_of_view"] = pixels.shape[1] * 2.0, pixels.shape[0] * 3.0, 5.0
    header["slice"], header["image_series_index"] = slice_number, 2 if deviation else 1
    for name in ("read_dir", "phase_dir", "slice_dir"):
        header[name] = getattr(geometry, name)
    meta = {"ReconUncertaintyKind": ["noise"]} if deviation else {"ReconPipeline": ["sense"]}
    return Image(header, pixels[None, None].astype(np.float32), meta)


def test_axial_slices_are_seen_from_the_feet() -> None:
    pixels = np.arange(12, dtype=np.float32).reshape(3, 4)
    view = turn(an_image(pixels))
    np.testing.assert_array_equal(view.pixels, pixels)
    assert (view.plane, view.letters, view.size_mm) == ("axial", ("R", "A"), (9.0, 8.0))
    turned = turn(an_image(pixels, geometry=AXIAL_READ_BACKWARDS))
    np.testing.assert_array_equal(turned.pixels, pixels[::-1, ::-1])
    assert turned.letters == ("R", "A")


def test_coronal_slices_have_the_head_at_the_top() -> None:
    """Columns run towards the head and rows to the left: on the screen the last column is at the top."""
    pixels = np.arange(12, dtype=np.float32).reshape(3, 4)
    view = turn(an_image(pixels, geometry=CORONAL_ALONG_THE_LEG))
    np.testing.assert_array_equal(view.pixels, pixels.T[::-1])
    assert (view.plane, view.letters, view.size_mm) == ("coronal", ("R", "H"), (8.0, 9.0))


def test_sagittal_slices_look_to_the_left() -> None:
    pixels = np.arange(12, dtype=np.float32).reshape(3, 4)
    view = turn(an_image(pixels, geometry=SAGITTAL))
    np.testing.assert_array_equal(view.pixels, pixels)
    assert (view.plane, view.letters) == ("sagittal", ("A", "H"))


def test_uncertainty_is_paired_by_slice_whatever_the_order() -> None:
    ones = np.ones((4, 4), np.float32)
    images = [an_image(ones * (n + 1), slice_number=n) for n in (2, 0, 1)]
    images += [an_image(ones * (n + 11), slice_number=n, deviation=True) for n in (1, 2)]
    pairs = pair_images(images)
    assert [float(pair.magnitude.pixels.max()) for pair in pairs] == [1, 2, 3]
    assert [None if pair.deviation is None else float(pair.deviation.pixels.max()) for pair in pairs] == [None, 12, 13]


def test_extra_series_are_not_taken_for_magnitudes() -> None:
    sample = an_image(np.full((16, 16), 7, np.float32))
    sample.meta.clear()
    sample.meta.update({"ReconExtra": ["posterior_samples"], "ReconExtraIndex": ["1"]})
    image, deviation = an_image(np.ones((16, 16), np.float32)), an_image(np.zeros((16, 16), np.float32), deviation=True)

    (pair,) = pair_images([image, deviation, sample])

    assert pair.magnitude is image
    assert pair.deviation is deviation


def test_calibrated_uncertainty_holds_95_percent() -> None:
    rng = np.random.default_rng(0)
    truth = np.full((200, 200), 50, np.float32)
    deviation = rng.uniform(1, 3, truth.shape).astype(np.float32)
    noisy = truth + deviation * rng.standard_normal(truth.shape).astype(np.float32)
    pairs = pair_images([an_image(noisy * 0.5), an_image(deviation * 0.5, deviation=True)])
    comparison = compare_pairs(pairs, {pairs[0].key: truth[None]})
    assert comparison.agreement.scale == pytest.approx(2, rel=0.01)
    assert comparison.within == pytest.approx(0.95, abs=0.005)


def test_reference_that_does_not_fit_is_named() -> None:
    pairs = pair_images([an_image(np.ones((16, 16), np.float32), slice_number=3)])
    with pytest.raises(FileError, match="no image of slice 3"):
        compare_pairs(pairs, {})
    with pytest.raises(FileError, match="reference is"):
        compare_pairs(pairs, {key_of(pairs[0].magnitude): np.ones((1, 16, 17), np.float32)})


@pytest.mark.parametrize("n_slices", [1, 3, 9])
def test_gallery_is_a_picture_with_the_image_in_it(n_slices: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((n_slices, 32, 40)).astype(np.float32)
    images = [an_image(pixels, slice_number=number) for number, pixels in enumerate(truth)]
    images += [an_image(np.full_like(p, 0.1), slice_number=n, deviation=True) for n, p in enumerate(truth)]
    reference = {key_of(image): image.pixels[0] for image in images[:n_slices]}
    path = tmp_path / "new" / "gallery.png"
    comparison = write_gallery(path, "a title " * 40, pair_images(images), reference)
    picture = matplotlib.image.imread(path)
    assert comparison is not None
    assert comparison.agreement.psnr_db > 100
    assert picture.shape[0] > 300
    assert picture.shape[1] > 600
    assert float(picture[..., :3].std()) > 0.05


def test_nothing_to_show_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no magnitude images"):
        write_gallery(tmp_path / "gallery.png", "empty", [])


def test_sampling_picture_shows_the_lines_that_were_measured(tmp_path: Path) -> None:
    mask = np.zeros((8, 16), np.uint8)
    mask[4:] = 1
    write_sampling(tmp_path / "sampling.png", "sampling", "half", mask)
    picture = matplotlib.image.imread(tmp_path / "sampling.png")
    height, width = picture.shape[:2]
    upper, lower = picture[int(height * 0.3), width // 2, :3], picture[int(height * 0.7), width // 2, :3]
    np.testing.assert_allclose(lower, np.array([0x5A, 0xA9, 0xE6]) / 255, atol=0.02)
    np.testing.assert_allclose(upper, np.array([0x1D, 0x24, 0x2B]) / 255, atol=0.02)
