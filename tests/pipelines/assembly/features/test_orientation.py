"""An object that lies obliquely and has no symmetry is found where it lies in the patient.

The object is a sum of Gaussians in patient coordinates (mm; left, posterior, head). Its samples are the analytic
Fourier transform at the k-space position that each readout's own header says, along its own directions and about its
own position: no image grid, no pixel. What is reconstructed is compared with the object at the places that image
headers (and NIfTI affines) give to pixels.

What the position of an image means follows from that: it is where k-space has its phase reference, and that is pixel
n//2 along each axis, for even and odd n. MRD calls it the centre of the excited volume; between the middle pixels of an
even matrix would be half a pixel off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ismrmrd
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.mrd import AcquisitionFlag, Acquisitions, Image, flagged
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Geometry, Protocol, SliceOrder
from pipelines.simulation.scan import SimulatedScan
from pipelines.simulation.volume import VolumeSampling, simulate_volume
from server.nifti_file import write_nifti

Fixture = Callable[..., Any]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """`height * exp(-|r - centre|^2 / (2 sigma^2))`, mm."""

    centre: tuple[float, float, float]
    sigma: float
    height: float


def body(about: Sequence[float]) -> list[Gaussian]:
    """Blobs to the left, behind and above of a place, and one in none of these directions: no symmetry is left."""
    x, y, z = about
    return [
        Gaussian((x + 24, y, z), 9.0, 1.0),
        Gaussian((x, y + 16, z + 4), 8.0, 0.7),
        Gaussian((x - 3, y - 5, z + 20), 9.0, 0.5),
        Gaussian((x - 18, y - 12, z - 12), 8.0, 0.9),
    ]


def object_at(points: Points, blobs: Sequence[Gaussian]) -> Points:
    """The object at points `(..., 3)`."""
    total = np.zeros(points.shape[:-1])
    for blob in blobs:
        total += blob.height * np.exp(-((points - blob.centre) ** 2).sum(axis=-1) / (2 * blob.sigma**2))
    return total


def rescan(scan: SimulatedScan, blobs: Sequence[Gaussian]) -> SimulatedScan:
    """The same readouts with the samples of the object, by the meaning that MRD gives to their headers.

    A thin slice shows the plane through its position; a slab is transformed along its normal as well.
    """
    encoding = ismrmrd.xsd.CreateFromDocument(scan.header).encoding[0]
    matrix, field = encoding.encodedSpace.matrixSize, encoding.encodedSpace.fieldOfView_mm
    limits = encoding.encodingLimits
    batches = []
    for batch in scan.batches:
        assert not flagged(batch.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT).any()
        samples = np.zeros((len(batch), batch.n_coils, batch.n_samples), np.complex128)
        for row, head in enumerate(batch.headers):
            kx = (np.arange(batch.n_samples) - int(head["center_sample"])) / field.x
            ky = (int(head["idx"]["kspace_encode_step_1"]) - limits.kspace_encoding_step_1.center) / field.y
            kz = (int(head["idx"]["kspace_encode_step_2"]) - limits.kspace_encoding_step_2.center) / field.z
            axes = np.array([head[name] for name in ("read_dir", "phase_dir", "slice_dir")], np.float64)
            for blob in blobs:
                along = axes @ (np.array(blob.centre) - head["position"])
                s2 = blob.sigma**2
                line = blob.height * np.exp(-2j * np.pi * (kx * along[0] + ky * along[1]))
                line *= 2 * np.pi * s2 * np.exp(-2 * np.pi**2 * s2 * (kx**2 + ky**2))
                if matrix.z == 1:
                    line *= np.exp(-(along[2] ** 2) / (2 * s2))
                else:
                    line *= np.sqrt(2 * np.pi * s2) * np.exp(-2 * np.pi**2 * s2 * kz**2 - 2j * np.pi * kz * along[2])
                samples[row, 0] += line
        # one over the field of view is the step of k-space; the rest is the orthonormal transform's
        volume = field.x * field.y * (field.z if matrix.z > 1 else 1)
        scale = np.sqrt(matrix.x * matrix.y * matrix.z) / volume
        batches.append(Acquisitions.from_arrays(batch.headers, (samples * scale).astype(np.complex64)))
    return replace(scan, batches=batches)


def places_of(image: Image, *, centre: Callable[[int], float] = lambda n: n // 2) -> Points:
    """Where the pixels of an image lie, `(z, y, x, 3)`, from its header alone."""
    header = image.header
    offset: Any = 0
    for axis, (name, n) in enumerate(zip(("read_dir", "phase_dir", "slice_dir"), header["matrix_size"], strict=True)):
        steps = (np.arange(int(n)) - centre(int(n))) * float(header["field_of_view"][axis]) / int(n)
        along = steps[:, None] * np.asarray(header[name], np.float64)
        offset = offset + along.reshape([-1 if 2 - axis == a else 1 for a in range(3)] + [3])
    return np.asarray(header["position"], np.float64) + offset


def error_of(images: Sequence[Image], blobs: Sequence[Gaussian], **how: Any) -> float:
    """Difference between images and object, relative to the object, over all pixels."""
    shown = np.concatenate([image.pixels[0].ravel() for image in images])
    expected = np.concatenate([object_at(places_of(image, **how), blobs).ravel() for image in images])
    return float(np.linalg.norm(shown - expected) / np.linalg.norm(expected))


def error_of_nifti(paths: Sequence[Path], blobs: Sequence[Gaussian]) -> float:
    shown, expected = [], []
    for path in paths:
        loaded = nibabel.load(path)
        data = np.asarray(loaded.dataobj, np.float64)
        index = np.stack(np.meshgrid(*(np.arange(n) for n in data.shape), indexing="ij"), axis=-1)
        ras = index @ loaded.affine[:3, :3].T + loaded.affine[:3, 3]
        shown.append(data.ravel())
        expected.append(object_at(ras * [-1, -1, 1], blobs).ravel())
    difference = np.concatenate(shown) - np.concatenate(expected)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.concatenate(expected)))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any directions at right angles, in both senses (Siemens frames are left-handed), anywhere in the magnet."""
    quaternion = np.array(draw(st.lists(st.floats(-1, 1), min_size=4, max_size=4)))
    if np.linalg.norm(quaternion) < 0.1:
        quaternion = np.array([1.0, 0, 0, 0])
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rows = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    sense = draw(st.sampled_from([1, -1]))
    position = draw(st.tuples(*[st.floats(-80, 80)] * 3))
    read, phase, normal = rows
    return Geometry(position, tuple(read.tolist()), tuple(phase.tolist()), tuple((sense * normal).tolist()))


def clean(geometry: Geometry, **changes: Any) -> Protocol:
    settings_ = {"n_coils": 1, "noise_std": 0, "noise_readouts": 0, "field_of_view_mm": (128.0, 120.0)}
    return Protocol(**{**settings_, "geometry": geometry, **changes})


def slices_of(geometry: Geometry, n_slices: int, sizes: tuple[int, int], **changes: Any) -> SimulatedScan:
    protocol = clean(geometry, slice_thickness_mm=6.0, slice_gap_mm=2.0, **changes)
    return rescan(simulate(np.zeros((n_slices, *sizes), np.float32), protocol), body(geometry.position_mm))


def slab_of(geometry: Geometry, sizes: tuple[int, int, int], volume: VolumeSampling, **changes: Any) -> SimulatedScan:
    protocol = clean(geometry, slice_thickness_mm=110.0 / sizes[0], **changes)
    return rescan(simulate_volume(np.zeros(sizes, np.float32), protocol, volume), body(geometry.position_mm))


@given(
    geometry=geometries(),
    sizes=st.tuples(st.integers(30, 37), st.integers(30, 37)),
    n_slices=st.integers(1, 6),
    phase_oversampling=st.sampled_from([0.0, 0.2]),
    oversampling=st.sampled_from([1, 2]),
    recon=st.sampled_from([None, (64, 60), (41, 45)]),
    order=st.sampled_from(SliceOrder),
)
@settings(max_examples=15, deadline=None)
def test_slices_show_the_object_where_it_lies(
    reconstruct: Fixture, geometry: Geometry, sizes: tuple[int, int], n_slices: int, phase_oversampling: float,
    oversampling: int, recon: tuple[int, int] | None, order: SliceOrder, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    scan = slices_of(
        geometry, n_slices, sizes, phase_oversampling=phase_oversampling, oversampling=oversampling,
        recon_matrix=recon, slice_order=order,
    )  # fmt: skip
    images = list(reconstruct(scan).values())
    blobs = body(geometry.position_mm)
    assert error_of(images, blobs) < 0.01
    paths = write_nifti(tmp_path_factory.mktemp("nifti") / "slices", images)
    assert len(paths) == 1
    assert error_of_nifti(paths, blobs) < 0.01


@given(
    geometry=geometries(),
    sizes=st.tuples(st.integers(24, 27), st.integers(28, 31), st.integers(30, 33)),
    slice_oversampling=st.sampled_from([0.0, 0.3]),
    phase_oversampling=st.sampled_from([0.0, 0.2]),
    recon=st.sampled_from([(None, None), ((48, 47), 40), ((33, 30), 31)]),
)
@settings(max_examples=10, deadline=None)
def test_volumes_show_the_object_where_it_lies(
    reconstruct: Fixture, geometry: Geometry, sizes: tuple[int, int, int], slice_oversampling: float,
    phase_oversampling: float, recon: Any, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    volume = VolumeSampling(slice_oversampling=slice_oversampling, recon_partitions=recon[1])
    scan = slab_of(geometry, sizes, volume, phase_oversampling=phase_oversampling, recon_matrix=recon[0])
    images = list(reconstruct(scan).values())
    blobs = body(geometry.position_mm)
    assert len(images) == 1
    assert error_of(images, blobs) < 0.01
    (path,) = write_nifti(tmp_path_factory.mktemp("nifti") / "slab", images)
    assert error_of_nifti([path], blobs) < 0.01


OBLIQUE = Geometry.oblique((12.0, -34.0, 56.0), tilt_deg=27, rotation_deg=-20)


@pytest.mark.parametrize("sizes", [(32, 32), (33, 33), (32, 35)])
@pytest.mark.parametrize("recon", [None, (64, 64), (51, 51)])
def test_position_is_that_of_pixel_half_n_and_not_between_the_middle_pixels(
    reconstruct: Fixture, sizes: tuple[int, int], recon: tuple[int, int] | None
) -> None:
    (image,) = reconstruct(slices_of(OBLIQUE, 1, sizes, recon_matrix=recon)).values()
    blobs = body(OBLIQUE.position_mm)
    at_half_n = error_of([image], blobs)
    between = error_of([image], blobs, centre=lambda n: (n - 1) / 2)
    assert at_half_n < 0.005
    is_odd = all(int(n) % 2 for n in image.header["matrix_size"][:2])
    assert (between < 0.005) if is_odd else (between > 0.05)


@pytest.mark.parametrize("wrong", ["read_dir", "phase_dir", "slice_dir", "swapped"])
def test_a_flipped_or_swapped_direction_would_be_seen(reconstruct: Fixture, wrong: str) -> None:
    """The object is asymmetric enough for every mistake of orientation."""
    images = list(reconstruct(slab_of(OBLIQUE, (24, 32, 32), VolumeSampling())).values())
    header = images[0].header.copy()
    if wrong == "swapped":
        header["read_dir"], header["phase_dir"] = header["phase_dir"].copy(), header["read_dir"].copy()
    else:
        header[wrong] *= -1
    assert error_of(images, body(OBLIQUE.position_mm)) < 0.005
    assert error_of([replace(images[0], header=header)], body(OBLIQUE.position_mm)) > 0.5


def test_partial_fourier_and_acceleration_do_not_move_the_object(reconstruct: Fixture) -> None:
    """Centre of mass of the brightest blob, from the pixels' places, with a quarter of k-space left out."""
    blob = [Gaussian((30.0, -30.0, 56.0), 9.0, 1.0)]
    geometry = replace(OBLIQUE, position_mm=(20.0, -36.0, 56.0))
    scan = simulate(np.zeros((1, 48, 48), np.float32), clean(geometry, partial_fourier=0.75, partial_echo=0.8))
    (image,) = reconstruct(rescan(scan, blob)).values()
    weights = np.where(image.pixels[0] > 0.2 * image.pixels.max(), image.pixels[0], 0)
    centre = (places_of(image) * weights[..., None]).sum(axis=(0, 1, 2)) / weights.sum()
    axes = np.array([geometry.read_dir, geometry.phase_dir])
    np.testing.assert_allclose(axes @ centre, axes @ np.array(blob[0].centre), atol=0.2)
