"""Reconstructed images in HDF5, laid out as the Gadgetron client writes them, and readable by `ismrmrd.Dataset`.

`/dataset/image_<series>/{header,attributes,data}`, one entry an image. HDF5 needs one matrix size and type in each
group: images of a series that differ go to `image_<series>_2` and so on, so that none is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from pipelines.mrd import IMAGE_HEADER, Image
from server.errors import FileError, ProtocolError
from server.hdf5 import Hdf5, is_group, read_hdf5, write_hdf5
from server.scan_file import DEFAULT_GROUP, write_header
from server.wire.attributes import read_attributes, write_attributes

_PAIR: Final[dict[np.dtype[Any], np.dtype[np.void]]] = {np.dtype("<c8"): np.dtype([("real", "<f4"), ("imag", "<f4")]),
                np.dtype("<c16"): np.dtype([("real", "<f8"), ("imag", "<f8")])}  # fmt: skip
"""ISMRMRD files hold complex pixels as pairs."""


def write_images(path: Path, images: Sequence[Image], header: bytes | None = None) -> list[str]:
    """Write images, replacing what was there; returns the names of their groups.

    Args:
        path: the file.
        images: in the order received.
        header: XML of the scan header, kept beside the images when given.

    Raises:
        FileError: the file cannot be written.
    """
    with write_hdf5(path) as file:
        dataset = file.create_group(DEFAULT_GROUP)
        if header is not None:
            write_header(dataset, header)
        return add_images(dataset, images)


def add_images(dataset: Hdf5, images: Sequence[Image]) -> list[str]:
    """Put images into a group of a file, one group of its own for each series; returns their names."""
    groups = group_images(images)
    for name, members in groups.items():
        pixels = np.stack([image.pixels for image in members])
        attributes = [write_attributes(image.meta).decode() for image in members]
        headers = np.array([image.header[()] for image in members], IMAGE_HEADER)
        headers["attribute_string_len"] = [len(text.encode()) for text in attributes]
        group = dataset.create_group(name)
        group.create_dataset("header", data=headers, maxshape=(None,))
        text_type = h5py.string_dtype("utf-8")
        group.create_dataset("attributes", data=np.array(attributes, object), dtype=text_type, maxshape=(None,))
        pair = _PAIR.get(pixels.dtype)
        stored = pixels if pair is None else pixels.view(pair).reshape(pixels.shape)
        group.create_dataset("data", data=stored, maxshape=(None, *stored.shape[1:]))
    return list(groups)


def group_images(images: Sequence[Image]) -> dict[str, list[Image]]:
    """Images by the name of their group in the file, in order of arrival."""
    groups: dict[str, list[Image]] = {}
    for image in images:
        series = int(image.header["image_series_index"])
        name, number = f"image_{series}", 1
        while name in groups and not _agree(groups[name][0], image):
            number += 1
            name = f"image_{series}_{number}"
        groups.setdefault(name, []).append(image)
    return groups


def _agree(first: Image, image: Image) -> bool:
    return first.pixels.shape == image.pixels.shape and first.pixels.dtype == image.pixels.dtype


def read_images(path: Path, group: str | None = None) -> dict[str, list[Image]]:
    """All images of a file by the name of their group, sorted by series number.

    Args:
        path: a file of `echotrain send` or of the Gadgetron client.
        group: where the series are; by default `dataset`, else the only group of the file that has some.

    Raises:
        FileError: no such file, not HDF5, or no images in it.
    """
    with read_hdf5(path) as file:
        holding = [name for name, member in file.items() if is_group(member) and image_series(member)]
        if group is None:
            group = DEFAULT_GROUP if DEFAULT_GROUP in holding else (holding[0] if len(holding) == 1 else None)
        if group is None or group not in holding:
            found = f"images in several groups ({', '.join(holding)}); say which" if holding else "no images"
            raise FileError(f"{path} holds {found}")
        member = file[group]
        return {name: read_series(member[name], path) for name in image_series(member)}


NO_HEADER: Final = b"Dummy XML header"
"""Sent where a file of images has no scan header, as python-ismrmrd-server's client does."""


def has_only_images(path: Path, group: str | None = None) -> bool:
    """Whether a file holds images and no readouts; errors are left to whoever reads it."""
    with read_hdf5(path) as file:
        names = [group] if group is not None else list(file)
        members = [file[name] for name in names if name in file and is_group(file[name])]
        return any(image_series(member) for member in members) and not any("data" in member for member in members)


def read_header(path: Path, group: str | None = None) -> bytes:
    """XML of the scan header beside the images, or `NO_HEADER` where there is none.

    Raises:
        FileError: no such file, or not HDF5.
    """
    with read_hdf5(path) as file:
        names = [group] if group is not None else [DEFAULT_GROUP, *file]
        for name in names:
            if name in file and is_group(file[name]) and "xml" in file[name]:
                text = file[name]["xml"][...].ravel()[0]
                return text.encode() if isinstance(text, str) else bytes(text).rstrip(b"\0")
    return NO_HEADER


def image_series(group: Hdf5) -> list[str]:
    """Names of the groups with images in a group, by series number."""
    found = [
        name for name, member in group.items() if name.startswith("image_") and is_group(member) and "data" in member
    ]
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else 0 for part in name.split("_")[1:]])


def read_series(group: Hdf5, path: Path) -> list[Image]:
    """The images of a series.

    Raises:
        FileError: they are damaged.
    """
    stored = np.asarray(group["data"][...])
    names = stored.dtype.names
    if names is not None:
        pair = np.empty(stored.shape, np.result_type(stored.dtype[0], np.complex64))
        pair.real, pair.imag = stored[names[0]], stored[names[1]]
        stored = pair
    heads = np.asarray(group["header"][...])
    headers = np.zeros(heads.shape, IMAGE_HEADER)
    for name in IMAGE_HEADER.names or ():
        if name not in (heads.dtype.names or ()):
            raise FileError(f"{path}: image headers lack the field '{name}'")
        headers[name] = heads[name]
    texts = list(group["attributes"][...]) if "attributes" in group else [b""] * len(stored)
    images: list[Image] = []
    for number, (header, pixels, text) in enumerate(zip(headers, stored, texts, strict=True)):
        try:
            meta = read_attributes(text.encode() if isinstance(text, str) else bytes(text))
        except ProtocolError as error:
            raise FileError(f"{path}: attributes of image {number} of {group.name} are damaged") from error
        images.append(Image(np.array(header, IMAGE_HEADER), np.ascontiguousarray(pixels), meta))
    return images
