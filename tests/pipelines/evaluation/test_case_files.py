from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipelines.errors import EvaluationError
from pipelines.evaluation.case_files import SIDES
from pipelines.evaluation.cases import load_cases
from pipelines.operators.fourier import to_kspace
from pipelines.phantom import birdcage_coils, head_phantom, smooth_phase


def write(path, **datasets: Any):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return path


def magnitudes(n_slices, shape=(40, 32)):
    return np.round(255 * head_phantom(n_slices, *shape)).astype(np.uint8)


def coil_images(n_coils=3, shape=(40, 32)):
    """Coil images whose root sum of squares is a head, with a little noise so that k-space has no gaps."""
    rng = np.random.default_rng(0)
    image = head_phantom(1, *shape)[0] * smooth_phase(shape, rng)
    noise = rng.standard_normal((n_coils, *shape)) + 1j * rng.standard_normal((n_coils, *shape))
    return (image * birdcage_coils(n_coils, shape) + 1e-3 * noise).astype(np.complex64)


def kspace_of(images):
    return to_kspace(torch.from_numpy(images)).numpy()


def rss(images):
    return np.sqrt((np.abs(images) ** 2).sum(-3))


def test_magnitude_subjects_take_turns_from_their_middle_slices_on(tmp_path):
    path = write(tmp_path / "set.h5", one=magnitudes(3), two=magnitudes(2))

    cases = list(load_cases(path, coils=5))

    assert [case.name for case in cases] == ["set/one/1", "set/two/1", "set/one/0", "set/one/2", "set/two/0"]
    assert [case.scan for case in cases] == ["set/one", "set/two", "set/one", "set/one", "set/two"]
    assert all(case.coil_images.shape == (5, 40, 32) for case in cases)


def test_datasets_of_one_group_are_one_scan(tmp_path):
    path = write(tmp_path / "set.h5", patient__t1=magnitudes(1), patient__t2=magnitudes(1), other__t1=magnitudes(1))

    assert {case.name: case.scan for case in load_cases(path)} == {
        "set/patient/t1/0": "set/patient",
        "set/patient/t2/0": "set/patient",
        "set/other/t1/0": "set/other",
    }


def test_a_limit_ends_the_cases_and_changes_none(tmp_path):
    path = write(tmp_path / "set.h5", one=magnitudes(4), two=magnitudes(4))

    few, all_cases = list(load_cases(path, seed=3, limit=3)), list(load_cases(path, seed=3))

    assert [case.name for case in few] == [case.name for case in all_cases[:3]]
    assert all(torch.equal(a.coil_images, b.coil_images) for a, b in zip(few, all_cases, strict=False))


def test_slices_beyond_the_object_are_left_out(tmp_path):
    volume = magnitudes(3)
    volume[0] = 0
    volume[2] //= 8

    assert [case.name for case in load_cases(write(tmp_path / "set.h5", one=volume))] == ["set/one/1"]


def test_slices_painted_white_around_the_object_are_left_out(tmp_path):
    volume = magnitudes(3)
    volume[1][volume[1] == 0] = 240

    names = [case.name for case in load_cases(write(tmp_path / "set.h5", one=volume))]

    assert sorted(names) == ["set/one/0", "set/one/2"]


def test_the_seed_decides_phase_and_coils(tmp_path):
    path = write(tmp_path / "set.h5", one=magnitudes(1))

    first, again, other = (next(load_cases(path, seed=seed)) for seed in (1, 1, 2))

    assert torch.equal(first.coil_images, again.coil_images)
    assert not torch.allclose(first.coil_images, other.coil_images, atol=0.01)
    torch.testing.assert_close(first.truth, other.truth, atol=1e-5, rtol=0)


def test_simulated_phase_is_smooth(tmp_path):
    case = next(load_cases(write(tmp_path / "set.h5", one=magnitudes(1, (128, 128))), coils=1))

    image = case.coil_images[0]
    bright = case.truth > 0.2
    step = (image[1:] * image[:-1].conj()).angle().abs()[bright[1:] & bright[:-1]]
    assert float(step.mean()) > 0
    assert float(step.max()) < 0.3


def test_complex_images_keep_their_phase(tmp_path):
    images = coil_images(1)
    case = next(load_cases(write(tmp_path / "set.h5", image=images), coils=1))

    expected = torch.from_numpy(images / np.abs(images).max())
    torch.testing.assert_close(case.coil_images, expected, atol=1e-5, rtol=1e-5)
    assert case.noise_std == 0


@pytest.mark.parametrize("stored_as", ["kspace", "coil_images", "slices of kspace", "slices of coil_images"])
def test_measured_arrays_keep_their_coils(tmp_path, stored_as):
    images = coil_images(3)
    name = stored_as.split()[-1]
    values = kspace_of(images) if name == "kspace" else images
    path = write(tmp_path / "set.h5", **{name: values[None] if "slices" in stored_as else values})

    (case,) = load_cases(path, coils=8)

    expected = torch.from_numpy(images / rss(images).max())
    torch.testing.assert_close(case.coil_images, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(case.truth, torch.from_numpy(rss(images) / rss(images).max()), atol=1e-5, rtol=1e-5)
    assert case.noise_std > 0


def test_kspace_of_one_channel_is_read_slice_by_slice(tmp_path):
    images = coil_images(2)
    path = write(tmp_path / "set.h5", **{"patient__gre kspace": kspace_of(images)})

    cases = {case.name: case for case in load_cases(path)}

    assert set(cases) == {"set/patient/gre kspace/0", "set/patient/gre kspace/1"}
    one = cases["set/patient/gre kspace/0"]
    torch.testing.assert_close(
        one.coil_images[0], torch.from_numpy(images[0] / np.abs(images[0]).max()), atol=1e-5, rtol=1e-5
    )
    assert one.scan == "set/patient"


@pytest.mark.parametrize("is_single_coil", [False, True])
def test_a_fastmri_file_is_cut_to_its_reconstructions(tmp_path, is_single_coil):
    images = np.stack([coil_images(1 if is_single_coil else 4, (64, 40)) for _ in range(2)])
    kspace = kspace_of(images)
    kspace[..., :2] = 0  # fastMRI fills the outermost columns with zeros
    target = "reconstruction_esc" if is_single_coil else "reconstruction_rss"
    path = write(
        tmp_path / "file1.h5",
        kspace=kspace[:, 0] if is_single_coil else kspace,
        **{target: np.zeros((2, 32, 32), np.float32)},
    )
    with h5py.File(path, "r+") as file:
        file.attrs["patient_id"] = "abc"

    cases = list(load_cases(path))

    assert len(cases) == 2
    assert {case.scan for case in cases} == {"abc"}
    shown = rss(torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(torch.from_numpy(kspace[1]), dim=(-2, -1)),
                norm="ortho"), dim=(-2, -1)).numpy())[16:48, 4:36]  # fmt: skip
    torch.testing.assert_close(cases[0].truth, torch.from_numpy(shown / shown.max()), atol=1e-4, rtol=1e-4)


def test_a_folder_is_read_file_by_file(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.h5", one=magnitudes(2))

    assert [case.name for case in load_cases(tmp_path)] == ["a/one/1", "b/one/1", "a/one/0", "b/one/0"]


def undersampled():
    kspace = kspace_of(coil_images())
    kspace[:, 1::3] = 0
    return kspace


def aliased():
    return np.fft.fftshift(
        np.fft.ifft2(np.fft.ifftshift(undersampled(), axes=(-2, -1)), norm="ortho"), axes=(-2, -1)
    ).astype(np.complex64)


@pytest.mark.parametrize(("datasets", "message"), [
    ({"kspace": undersampled()}, "not fully sampled: 32 %"),
    ({"coil_images": aliased()}, "not fully sampled"),
    ({"kspace": np.full((2, 32, 32), np.nan, np.complex64)}, "not finite"),
    ({"kspace": np.ones((2, 32, 32), np.float32)}, "expected complex"),
    ({"kspace": np.ones((32, 32), np.complex64)}, "expected complex"),
    ({"kspace": np.ones((1, 1, 2, 32, 32), np.complex64)}, "expected complex"),
    ({"kspace": np.ones((129, 16, 16), np.complex64)}, "129 coils"),
    ({"one": np.ones((2, SIDES[0] - 1, 32), np.uint8)}, "15, 32"),
    ({"one": np.ones((1, 32, SIDES[1] + 1), np.uint8)}, "32, 2049"),
    ({"one": -np.ones((1, 32, 32), np.float32)}, "negative"),
    ({"brain": np.ones((2, 32, 32), np.complex64)}, "found: brain"),
    ({"words": np.array([b"a"])}, "found: words"),
    ({}, "no dataset"),
    ({"kspace": kspace_of(coil_images()[None]), "reconstruction_rss": np.ones((1, 48, 48))}, "do not fit"),
])  # fmt: skip
def test_what_is_not_understood_is_refused_with_what_was_found(tmp_path, datasets, message):
    path = write(tmp_path / "set.h5", **datasets)

    with pytest.raises(EvaluationError, match=message) as caught:
        list(load_cases(path))

    assert "set" in str(caught.value)


def test_sizes_are_checked_before_anything_is_loaded(tmp_path):
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (128, 2048, 2048), np.complex64, chunks=(1, 64, 64))

    with pytest.raises(EvaluationError, match="4294967296 bytes"):
        next(load_cases(path))


def test_links_out_of_the_file_are_not_followed(tmp_path):
    write(tmp_path / "other.h5", kspace=kspace_of(coil_images()))
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = h5py.ExternalLink("other.h5", "/kspace")
        file["coil_images"] = h5py.SoftLink("/kspace")

    with pytest.raises(EvaluationError, match="no dataset"):
        next(load_cases(path))


def test_values_stored_in_another_file_are_refused(tmp_path):
    (tmp_path / "raw.bin").write_bytes(bytes(32 * 32))
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("one", (1, 32, 32), np.uint8, external=str(tmp_path / "raw.bin"))

    with pytest.raises(EvaluationError, match="another file"):
        next(load_cases(path))


def test_what_is_no_hdf5_is_refused(tmp_path):
    path = tmp_path / "set.h5"
    path.write_text("nothing")

    with pytest.raises(EvaluationError, match=r"set\.h5 is not an HDF5 file"):
        next(load_cases(path))


@pytest.mark.parametrize("name", ["missing.h5", "."])
def test_a_missing_file_is_said_to_be_missing(tmp_path, name):
    with pytest.raises(EvaluationError, match="no "):
        next(load_cases(tmp_path / name))


def test_arrays_have_a_coil_at_least(tmp_path):
    with pytest.raises(EvaluationError, match="at least 1 coil"):
        next(load_cases(write(tmp_path / "set.h5", one=magnitudes(1)), coils=0))
