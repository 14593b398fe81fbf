"""Images for training: what is read of a file, who is kept apart, what is refused, and what patches are."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import TrainingDataError
from models.training import images
from models.training.images import Patches, Source, read_sources, validation_images, validation_slices


def slices(n: int = 3, y: int = 64, x: int = 56, seed: int = 0) -> NDArray[np.uint8]:
    """Bright discs, one brighter than the next."""
    at_y, at_x = np.mgrid[-1 : 1 : y * 1j, -1 : 1 : x * 1j]
    disc = (at_y / 0.8) ** 2 + (at_x / 0.7) ** 2 < 1
    rng = np.random.default_rng(seed)
    return (disc * rng.integers(100, 200, (n, y, x))).astype(np.uint8)


def write(path: Path, subjects: dict[str, NDArray[np.generic]], **attributes: str) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for name, stack in subjects.items():
            file[name] = stack
    return path


def read(path: Path, *, validation: bool = False) -> Source:
    (source,) = read_sources([path], validation=validation)
    return source


def source_of(*stack: NDArray[np.generic], name: str = "made") -> Source:
    return Source(name, "", "", "", ("a",), stack, tuple(float(np.quantile(image, 0.998)) for image in stack))


@pytest.mark.parametrize(("n", "kept_apart"), [(3, 1), (9, 1), (10, 1), (19, 1), (20, 2), (41, 4)])
def test_no_subject_is_in_both_halves_and_none_is_lost(tmp_path: Path, n: int, kept_apart: int) -> None:
    names = [f"p{index:02d}" for index in range(n)]
    path = write(tmp_path / "heads.h5", {name: slices(1) for name in names})
    training, validation = read(path).subjects, read(path, validation=True).subjects
    assert not set(training) & set(validation)
    assert sorted(training + validation) == [f"heads/{name}" for name in names]
    assert len(validation) == kept_apart


def test_all_contrasts_of_a_subject_stay_together(tmp_path: Path) -> None:
    stacks = {f"p{index}/{kind}": slices(2) for index in range(3) for kind in ("t1", "t2")}
    path = write(tmp_path / "heads.h5", stacks)
    assert read(path).subjects == ("heads/p0", "heads/p1")
    assert len(read(path).slices) == 8
    assert read(path, validation=True).subjects == ("heads/p2",)


def test_two_subjects_are_too_few_to_keep_one_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "heads.h5", {"a": slices(), "b": slices()})
    assert len(read(path).subjects) == 2
    with pytest.raises(TrainingDataError, match=r"no subjects for validation in heads\.h5: three"):
        read(path, validation=True)


def test_attributes_say_licence_and_origin(tmp_path: Path) -> None:
    path = write(tmp_path / "heads.h5", {"a": slices()}, licence="CC0", source="here", attribution="thanks")
    source = read(path)
    assert (source.name, source.licence, source.origin, source.attribution) == ("heads", "CC0", "here", "thanks")


def test_licences_of_the_files_of_a_directory_are_all_kept(tmp_path: Path) -> None:
    for name, licence in {"a": "CC0", "b": "MIT", "c": "CC0", "d": ""}.items():
        write(tmp_path / f"{name}.h5", {"s": slices(1)}, licence=licence)
    assert read(tmp_path).licence == "CC0, MIT"


def test_a_file_whose_name_bars_training_is_refused(tmp_path: Path) -> None:
    barred = write(tmp_path / "heads_localonly.h5", {"a": slices()})
    disguised = tmp_path / "free.h5"
    disguised.symlink_to(barred)
    for path in (barred, disguised, tmp_path):
        with pytest.raises(TrainingDataError, match="may not be trained on"):
            read(path)


def test_more_than_fits_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_BYTES", 20_000)
    small = write(tmp_path / "small.h5", {"a": slices(2), "b": slices(2)})
    assert len(read(small).slices) == 4
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file.create_dataset("a", (1 << 20, 1 << 10, 1 << 10), np.uint8, chunks=(1, 1024, 1024))
    many = write(tmp_path / "many.h5", {name: slices(2) for name in "abc"})
    with pytest.raises(TrainingDataError, match="is larger than"):
        read(tmp_path / "one.h5")
    with pytest.raises(TrainingDataError, match="holds more than"):
        read(many)


def test_what_is_no_file_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no")
    empty = write(tmp_path / "empty.h5", {"a": slices(y=30), "b": np.zeros((2, 64, 64)), "c": np.zeros((2, 3, 64, 64))})
    (tmp_path / "folder").mkdir()
    for path, message in {
        tmp_path / "text.h5": "cannot be read as HDF5",
        tmp_path / "absent.h5": "cannot be read as HDF5",
        tmp_path / "folder": r"holds no \.h5 files",
        empty: "no images of at least 48 x 48",
    }.items():
        with pytest.raises(TrainingDataError, match=message):
            read(path)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "not finite"), (np.inf, "not finite"), (-1.0, "negative")])
def test_values_that_are_no_magnitudes_are_refused(tmp_path: Path, value: float, message: str) -> None:
    stack = slices().astype(np.float32)
    stack[1, 20, 20] = value
    with pytest.raises(TrainingDataError, match=rf"heads\.h5:a/b holds.*{message}"):
        read(write(tmp_path / "heads.h5", {"a/b": stack}))


def test_text_and_other_shapes_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "heads.h5", {"a": slices(), "note": np.full((1, 64, 64), b"x"), "line": np.ones((64, 64))})
    assert read(path).subjects == ("heads/a",)


def test_complex_kspace_becomes_the_magnitude_of_its_image(tmp_path: Path) -> None:
    truth = slices(2).astype(np.float64)
    phase = np.exp(1j * np.linspace(0, 3, 56))
    axes = (-2, -1)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(truth * phase, axes)), axes).astype(np.complex64)
    found = read(write(tmp_path / "raw.h5", {"a": kspace}))
    for image, expected in zip(found.slices, truth, strict=True):
        assert image.dtype == np.float16
        np.testing.assert_allclose(image.astype(np.float64), expected / truth.max(), atol=1e-3)


def test_of_a_fastmri_file_only_the_reconstruction_is_read_and_patients_stay_together(tmp_path: Path) -> None:
    image = slices(2).astype(np.float32)
    for index in range(6):
        with h5py.File(tmp_path / f"file{index}.h5", "w") as file:
            file.attrs["patient_id"] = f"patient{index // 2}"
            file["kspace"] = image.astype(np.complex64)  # the single-coil track has three axes, as images have
            file["reconstruction_esc"] = image
            file["reconstruction_rss"] = image
    training, validation = read(tmp_path), read(tmp_path, validation=True)
    assert training.subjects == ("patient0", "patient1")
    assert validation.subjects == ("patient2",)
    assert (len(training.slices), len(validation.slices)) == (8, 4)


def test_without_patient_a_fastmri_file_is_a_subject(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / f"file{index}.h5", {"reconstruction_rss": slices(1).astype(np.float32)})
    assert read(tmp_path).subjects == ("file0", "file1")


def test_volumes_are_cut_along_three_axes_and_stacks_along_one(tmp_path: Path) -> None:
    volume = np.full((80, 90, 100), 100, np.uint8)
    volume[:8, :8], volume[:8, :, :8], volume[:, :8, :8] = 0, 0, 0
    path = write(tmp_path / "volumes.h5", dict.fromkeys("abc", volume))
    shapes = [image.shape for image in read(path).slices]
    assert {shape: shapes.count(shape) for shape in shapes} == {(90, 100): 80, (80, 100): 90, (80, 90): 100}
    assert [image.shape for image in read(path, validation=True).slices] == [(90, 100)] * 8
    stack = write(tmp_path / "stack.h5", {"a": volume[:79]})
    assert [image.shape for image in read(stack).slices] == [(90, 100)] * 79


def test_slices_with_next_to_nothing_in_them_are_left_out(tmp_path: Path) -> None:
    stack = slices(3)
    stack[1] = 0
    stack[1, :3] = 200
    assert len(read(write(tmp_path / "heads.h5", {"a": stack})).slices) == 2


@pytest.mark.parametrize(("dark_corners", "kept"), [(0, 2), (1, 3), (4, 3)])
def test_slices_with_white_air_are_left_out(tmp_path: Path, dark_corners: int, kept: int) -> None:
    stack = slices(3)
    stack[1][stack[1] == 0] = 190
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1))[:dark_corners]:
        stack[1, -8 * y : None if y else 8, -8 * x : None if x else 8] = 0
    assert len(read(write(tmp_path / "heads.h5", {"a": stack})).slices) == kept


def test_patches_are_normalised_float32_and_the_same_for_the_same_seed() -> None:
    patches = Patches([source_of(*slices(4, 90, 80))], 48)
    first = patches.draw(200, np.random.default_rng(3))
    assert (first.dtype, first.shape) == (torch.float32, (200, 48, 48))
    assert torch.equal(first, patches.draw(200, np.random.default_rng(3)))
    assert not torch.equal(first, patches.draw(200, np.random.default_rng(4)))
    assert 0.9 < float(first.amax()) < 1.3
    assert float(first.amin()) >= -0.01  # rounding of uint8 is undone by half a grey level to either side
    assert float((first.mean((1, 2)) < Patches.EMPTIEST).float().mean()) < 0.05


def test_sources_are_weighted_alike_however_many_slices_they_hold() -> None:
    many, few = np.full((64, 64), 0.25, np.float16), np.tile(np.float16([0, 1]), (64, 32))
    sources = [source_of(*[many] * 99, name="many"), source_of(few, name="few")]
    drawn = Patches(sources, 64).draw(1000, np.random.default_rng(0))
    striped = (drawn.flatten(1).std(1) > 0.05).float().sum()
    # Three deviations of a binomial; a curve of intensities may flatten a few of the stripes.
    assert abs(float(striped) - 500) < 3 * 500**0.5 + 25


@given(st.integers(48, 100), st.integers(48, 100), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_patch_comes_of_any_image_that_is_large_enough(y: int, x: int, seed: int) -> None:
    patches = Patches([source_of(*slices(1, y, x))], 48)
    assert patches.draw(2, np.random.default_rng(seed)).shape == (2, 48, 48)


def test_a_source_without_an_image_as_large_as_a_patch_is_named() -> None:
    with pytest.raises(TrainingDataError, match="little: no image has 64 x 64 pixels"):
        Patches([source_of(*slices(1, 90, 90)), source_of(*slices(2, 63, 90), name="little")], 64)


def test_images_of_zeros_are_no_images() -> None:
    with pytest.raises(TrainingDataError, match="dark: no image has"):
        Patches([source_of(np.zeros((64, 64), np.uint8), name="dark")], 64)
    with pytest.raises(TrainingDataError, match="no sources"):
        Patches([], 64)


def test_nearly_empty_images_give_empty_patches_and_no_endless_loop() -> None:
    spot = np.zeros((400, 400), np.uint8)
    spot[0, :330] = 200
    patches = Patches([source_of(spot)], 48).draw(5, np.random.default_rng(0))
    assert torch.isfinite(patches).all()


def test_drawing_ends_with_an_error_when_chance_never_takes_an_empty_patch() -> None:
    class Never(np.random.Generator):
        def random(self, *args: object, **kwargs: object) -> object:
            drawn = super().random(*args, **kwargs)
            return max(drawn, 0.5) if isinstance(drawn, float) else drawn

    spot = np.zeros((400, 400), np.float16)
    spot[0, :330] = 1
    with pytest.raises(TrainingDataError, match="1000 patches in a row were empty"):
        Patches([source_of(spot)], 48).draw(5, Never(np.random.PCG64(0)))


def test_validation_images_are_the_slices_cropped_or_framed() -> None:
    sources = [source_of(*slices(4, 60, 90)), source_of(*slices(2, 100, 50, seed=1), name="other")]
    whole, framed = validation_slices(sources, 6), validation_images(sources, 6, 80)
    assert [tuple(image.shape) for image in whole] == [(60, 90), (100, 50)] * 3
    assert framed.shape == (6, 80, 80)
    assert torch.equal(framed[0, 10:70], whole[0][:, 5:85])
    assert torch.equal(framed[1][:, 15:65], whole[1][10:90])
    assert float(framed[0, :10].abs().max()) == 0
    assert 0.9 < float(whole[0].max()) < 1.1
