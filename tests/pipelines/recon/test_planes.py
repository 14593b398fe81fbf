"""Frames as planes: what becomes an item, and back."""

import dataclasses

import pytest
import torch
from torch import Tensor

from pipelines.operators.fourier import to_image, to_kspace
from pipelines.recon.planes import make_planes
from pipelines.recon.reconstruction import Prepared


def complex_noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def frames_of(images: Tensor, counts: Tensor) -> Prepared:
    """K-space of coil images `(frames, coils, z, y, x)`."""
    kspace = to_kspace(images, (-3, -2, -1)) * (counts > 0)[:, None, ..., None]
    return Prepared(kspace, counts, None, 1.0, True, torch.ones(images.shape[-1], dtype=torch.bool))


@pytest.mark.parametrize(("frames", "z"), [(1, 1), (3, 1), (2, 4), (1, 5)])
def test_fully_measured_partitions_are_planes_of_x_and_y(frames: int, z: int):
    images = complex_noise(frames, 2, z, 6, 5)
    counts = torch.zeros(frames, z, 6)
    counts[:, :, ::2] = 1
    counts[:, :, 3] = 2
    planes = make_planes(frames_of(images, counts))

    assert not planes.is_across
    assert planes.kspace.shape == (frames * z, 2, 5, 6)
    aliased = to_image(to_kspace(images) * (counts > 0)[:, None, ..., None])
    for coil in range(2):
        torch.testing.assert_close(planes.to_volumes(to_image(planes.kspace[:, coil])), aliased[:, coil])
    assert torch.equal(planes.to_volumes(planes.weights), counts[..., None].expand(frames, z, 6, 5))


@pytest.mark.parametrize("frames", [1, 3])
def test_undersampled_partitions_are_planes_of_z_and_y(frames: int):
    images = complex_noise(frames, 2, 4, 6, 5)
    counts = (torch.rand(frames, 4, 6, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    planes = make_planes(frames_of(images, counts))

    assert planes.is_across
    assert planes.kspace.shape == (frames * 5, 2, 4, 6)
    aliased = to_image(to_kspace(images, (-3, -2)) * (counts > 0)[:, None, ..., None], (-3, -2))
    for coil in range(2):
        torch.testing.assert_close(planes.to_volumes(to_image(planes.kspace[:, coil])), aliased[:, coil])
    assert torch.equal(planes.to_volumes(planes.weights), counts[..., None].expand(frames, 4, 6, 5))


@pytest.mark.parametrize("is_across", [False, True])
def test_maps_of_a_plane_are_those_of_its_place_in_every_frame(is_across: bool):
    images = complex_noise(3, 2, 4, 6, 5)
    counts = torch.ones(3, 4, 6)
    counts[:, 0, 0] = 0 if is_across else 1
    planes = make_planes(frames_of(images, counts))
    assert planes.is_across == is_across
    maps = complex_noise(2, 4, 6, 5)
    items = len(planes.kspace)

    whole = planes.of_volumes(maps, range(items))
    for coil in range(2):
        assert torch.equal(planes.to_volumes(whole[:, coil]), maps[coil].expand(3, 4, 6, 5))
    assert torch.equal(planes.of_volumes(maps, range(3, items - 2)), whole[3 : items - 2])


def test_columns_that_were_not_measured_have_no_weight():
    prepared = frames_of(complex_noise(1, 2, 1, 6, 5), torch.ones(1, 1, 6))
    sampled = torch.tensor([False, False, True, True, True])
    planes = make_planes(dataclasses.replace(prepared, readout_sampled=sampled))
    assert torch.equal(planes.weights, sampled.float()[:, None].expand(1, 5, 6))
