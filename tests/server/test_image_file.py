"""Images written to HDF5 and NIfTI."""

from __future__ import annotations

import resource
from pathlib import Path

import ismrmrd
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.mrd import IMAGE_HEADER, Image, ImageDataType
from pipelines.simulated_protocol import Geometry
from server.errors import FileError
from server.image_file import read_images, write_images
from server.nifti_file import affine_of, write_nifti


def an_image(
    pixels: NDArray[np.generic],
    *,
    series: int = 1,
    slice_number: int = 0,
    repetition: int = 0,
    geometry: Geometry | None = None,
    offset_mm: float = 0.0,
) -> Image:
    geometry = geometry or Geometry()
    header = np.zeros((), IMAGE_HEADER)
    channels, n_z, n_y, n_x = pixels.shape
    data_type = next(kind for kind in ImageDataType if kind.dtype == pixels.dtype)
    header["version"], header["data_type"], header["channels"] = 1, data_type, channels
    header["matrix_size"] = n_x, n_y, n_z
    header["field_of_view"] = 200.0, 240.0, 5.0 * n_z
    header["image_series_index"], header["slice"], header["repetition"] = series, slice_number, repetition
    header["read_dir"], header["phase_dir"] = geometry.read_dir, geometry.phase_dir
    header["slice_dir"] = geometry.slice_dir
    header["position"] = np.array(geometry.position_mm) + offset_mm * np.array(geometry.slice_dir)
    return Image(header, pixels, {"DataRole": ["Image"], "Comment": ["grün", "<b>"]})


def random_pixels(shape: tuple[int, ...], dtype: str = "<f4") -> NDArray[np.generic]:
    rng = np.random.default_rng(1)
    if dtype == "<c8":
        return (rng.random(shape) + 1j * rng.random(shape)).astype(dtype)
    return (rng.random(shape) * 1000).astype(dtype)


@pytest.mark.parametrize("dtype", ["<f4", "<u2", "<c8"])
def test_ismrmrd_python_reads_the_images(dtype: str, tmp_path: Path) -> None:
    images = [an_image(random_pixels((1, 1, 6, 8), dtype), series=series) for series in (1, 1, 3)]
    path = tmp_path / "images.h5"
    assert write_images(path, images, b"<ismrmrdHeader/>") == ["image_1", "image_3"]
    with ismrmrd.Dataset(path, mode="r") as dataset:
        assert dataset.number_of_images("image_1") == 2
        read = dataset.read_image("image_1", 1)
        assert dataset.read_xml_header() == b"<ismrmrdHeader/>"
    np.testing.assert_array_equal(read.data, images[1].pixels)
    assert read.field_of_view[1] == 240
    assert read.meta["DataRole"] == "Image"
    assert read.meta["Comment"] == ["grün", "<b>"]


@pytest.mark.parametrize("dtype", ["<f4", "<u2", "<c8"])
def test_images_come_back_as_they_were(dtype: str, tmp_path: Path) -> None:
    images = [an_image(random_pixels((2, 3, 6, 8), dtype), series=series) for series in (10, 2)]
    write_images(tmp_path / "images.h5", images)
    read = read_images(tmp_path / "images.h5")
    assert list(read) == ["image_2", "image_10"]
    np.testing.assert_array_equal(read["image_10"][0].pixels, images[0].pixels)
    assert read["image_10"][0].pixels.dtype == np.dtype(dtype)
    assert read["image_2"][0].meta == images[1].meta
    for name in ("position", "matrix_size", "image_series_index"):
        np.testing.assert_array_equal(read["image_2"][0].header[name], images[1].header[name])


def test_files_of_ismrmrd_python_are_read(tmp_path: Path) -> None:
    pixels = random_pixels((1, 1, 6, 8))
    with ismrmrd.Dataset(tmp_path / "foreign.h5", "2026-11-21 11:00:00") as dataset:
        dataset.append_image("image_0", ismrmrd.Image.from_array(pixels, transpose=False))
    np.testing.assert_array_equal(read_images(tmp_path / "foreign.h5")["image_0"][0].pixels, pixels)


def test_images_of_another_size_in_a_series_are_kept_apart(tmp_path: Path) -> None:
    images = [an_image(random_pixels((1, 1, 6, n))) for n in (8, 9, 8)]
    assert write_images(tmp_path / "images.h5", images) == ["image_1", "image_1_2"]
    read = read_images(tmp_path / "images.h5")
    assert [len(read[name]) for name in ("image_1", "image_1_2")] == [2, 1]


def test_missing_images_are_named(tmp_path: Path) -> None:
    write_images(tmp_path / "none.h5", [])
    with pytest.raises(FileError, match="no images"):
        read_images(tmp_path / "none.h5")
    with pytest.raises(FileError, match="there is no file"):
        read_images(tmp_path / "nothing.h5")


def test_nifti_affine_of_an_oblique_slice_puts_pixels_where_they_were_measured() -> None:
    geometry = Geometry.oblique((12.0, -34.0, 56.0), tilt_deg=20, rotation_deg=35)
    affine = affine_of(an_image(random_pixels((1, 1, 60, 50)), geometry=geometry))
    to_ras = np.array([-1.0, -1.0, 1.0])
    for x, y in ((25, 30), (0, 0), (49, 7)):
        lps = (
            np.array(geometry.position_mm)
            + (x - 25) * 4.0 * np.array(geometry.read_dir)
            + (y - 30) * 4.0 * np.array(geometry.phase_dir)
        )
        np.testing.assert_allclose((affine @ [x, y, 0, 1])[:3], lps * to_ras, atol=1e-4)


def test_nifti_of_an_axial_slice_has_the_textbook_affine() -> None:
    affine = affine_of(an_image(random_pixels((1, 1, 60, 50))))
    np.testing.assert_allclose(affine, [[-4, 0, 0, 100], [0, -4, 0, 120], [0, 0, 5, 0], [0, 0, 0, 1]], atol=1e-5)
    assert nibabel.aff2axcodes(affine) == ("L", "P", "S")


def test_nifti_stack_is_ordered_along_its_normal_with_frames_last(tmp_path: Path) -> None:
    geometry = Geometry.oblique((0.0, 5.0, 10.0), tilt_deg=10, rotation_deg=0)
    rng = np.random.default_rng(2)
    images = [
        an_image(rng.random((1, 1, 6, 8)).astype(np.float32), slice_number=number, repetition=repetition,
                 geometry=geometry, offset_mm=-7.0 * number)
        for repetition in (1, 0)
        for number in (0, 1, 2)
    ]  # fmt: skip
    (path,) = write_nifti(tmp_path / "stack", images)
    loaded = nibabel.load(path)
    data = np.asarray(loaded.dataobj)
    assert data.shape == (8, 6, 3, 2)
    np.testing.assert_array_equal(data[:, :, 0, 0], images[5].pixels[0, 0].T)
    np.testing.assert_array_equal(data[:, :, 2, 1], images[0].pixels[0, 0].T)
    step = loaded.affine[:3, 2] * [-1, -1, 1]
    np.testing.assert_allclose(step, 7.0 * np.array(geometry.slice_dir), atol=1e-4)
    assert loaded.header.get_xyzt_units()[0] == "mm"


def test_slices_that_are_no_stack_get_a_file_each(tmp_path: Path) -> None:
    tilted = Geometry.oblique((0.0, 0.0, 0.0), tilt_deg=90, rotation_deg=0)
    images = [
        an_image(random_pixels((1, 1, 6, 8))),
        an_image(random_pixels((1, 1, 6, 8)), slice_number=1, geometry=tilted),
    ]
    paths = write_nifti(tmp_path / "localiser", images)
    assert [path.name for path in paths] == ["localiser_slice_0.nii.gz", "localiser_slice_1.nii.gz"]
    assert not np.allclose(nibabel.load(paths[0]).affine, nibabel.load(paths[1]).affine)


def test_volume_keeps_its_partitions(tmp_path: Path) -> None:
    image = an_image(random_pixels((1, 5, 6, 8)))
    (path,) = write_nifti(tmp_path / "volume", [image])
    loaded = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(loaded.dataobj), image.pixels[0].transpose(2, 1, 0))
    assert loaded.affine[2, 2] == pytest.approx(5)


def test_a_disk_that_is_full_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    write_images(path, [an_image(random_pixels((1, 1, 4, 4)))], b"<xml/>")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files that may not grow fail like a disk that is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(FileError, match="cannot be written"):
            write_images(path, [an_image(random_pixels((1, 1, 200, 200)))], b"<xml/>")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
