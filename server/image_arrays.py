"""Image arrays of Gadgetron's <-> images: the same pixels, headers and attributes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipelines.gadgetron import ImageArray
from pipelines.mrd import Image, ImageDataType
from server.errors import ProtocolError
from server.wire.attributes import read_attributes, write_attributes


def images_of(array: ImageArray) -> Iterator[Image]:
    """The images of an array, complex, in the order of its headers.

    Raises:
        ProtocolError: headers or attributes are not as many as images, or attributes are malformed.
    """
    if array.headers.shape != array.data.shape[:3]:
        raise ProtocolError(
            f"the peer sent an image array with headers for {array.headers.shape} images and pixels for "
            f"{array.data.shape[:3]}",
            kind="bad_length",
        )
    if len(array.meta) not in (0, array.headers.size):
        raise ProtocolError(
            f"the peer sent an image array with {len(array.meta)} attributes for {array.headers.size} images",
            kind="bad_length",
        )
    for number, at in enumerate(np.ndindex(array.headers.shape)):
        pixels = np.ascontiguousarray(array.data[at])
        header = array.headers[at].copy()
        header["data_type"], header["channels"] = ImageDataType.CXFLOAT, pixels.shape[0]
        header["matrix_size"] = pixels.shape[:0:-1]
        yield Image(np.asarray(header), pixels, read_attributes(array.meta[number]) if array.meta else {})


def array_of(image: Image) -> ImageArray:
    """An array with this image alone; magnitudes and other real pixels get an imaginary part of 0.

    Attributes are written in ASCII, for the package `gadgetron` reads nothing else; other characters become references.
    """
    header = image.header.copy()
    header["data_type"], header["attribute_string_len"] = ImageDataType.CXFLOAT, 0
    meta = write_attributes(image.meta).decode().encode("ascii", "xmlcharrefreplace")
    return ImageArray(
        np.ascontiguousarray(image.pixels, np.complex64).reshape(1, 1, 1, *image.pixels.shape),
        header.reshape(1, 1, 1),
        (meta or b"<ismrmrdMeta/>",),
    )
