"""Images (id 1022) as bytes.

    u16 1022 | header, 198 bytes | u64 n | n bytes of attribute XML | pixels [channels][z][y][x]

Source: MRD streaming protocol, "Image"; `ismrmrd.h`. The length of the attributes is on the wire twice. Every peer
reads by the u64; the u32 in the header is taken as "not filled in" when it is 0, and otherwise has to agree: two
different lengths mean that one of them, and all that follows, is wrong.

We send attributes without a trailing NUL and read them with or without. Gadgetron counts a NUL at the end;
ismrmrd-python and the FIRE document have none, and every reader (Gadgetron's client measured) takes the text without.
XML without it is also what strict parsers expect. Without attributes the length is 0.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import numpy as np

from pipelines.mrd import IMAGE_HEADER, Image, ImageDataType
from server.errors import LimitError, ProtocolError
from server.wire.attributes import read_attributes, write_attributes
from server.wire.messages import Buffers, MessageId, WireLimits

_HEADER_END: Final = 2 + IMAGE_HEADER.itemsize
FIXED_BYTES: Final = _HEADER_END + 8
"""Bytes, with the id, after which the size of an image is known."""

_FIXED: Final = struct.Struct(
    "<HHH12xHHH12xH158xIQ"
)  # id, version, data type, ..., matrix, ..., channels, ..., u32, u64
if _FIXED.size != FIXED_BYTES:
    raise RuntimeError("the fixed part of an image has the wrong size")


def image_size(data: memoryview, start: int, limits: WireLimits) -> int:
    """Bytes of the image at `start`, from its first `FIXED_BYTES`.

    Raises:
        LimitError: pixels, attributes or the whole are over a limit.
        ProtocolError: the data type is unknown, a size is 0, or the two attribute lengths differ.
    """
    _, _, data_type, *shape, in_header, attributes = _FIXED.unpack_from(data, start)
    if data_type not in set(ImageDataType):
        raise ProtocolError(f"the peer sent an image of data_type {data_type}; 1 to 8 are known", kind="bad_header")
    pixels = math.prod(shape)
    described = f"matrix {shape[0]} x {shape[1]} x {shape[2]} and {shape[3]} channels"
    if pixels == 0:
        raise ProtocolError(f"the peer sent an image without pixels ({described})", kind="bad_header")
    if pixels > limits.image_pixels:
        raise LimitError(
            f"the peer announced an image of {pixels} pixels ({described}); the limit is {limits.image_pixels}"
        )
    if attributes > limits.attribute_bytes:
        raise LimitError(
            f"the peer announced image attributes of {attributes} bytes; the limit is {limits.attribute_bytes}"
        )
    if in_header not in (0, attributes):
        raise ProtocolError(
            f"the peer sent an image whose attribute lengths differ: {in_header} in the header, {attributes} behind it",
            kind="bad_length",
        )
    size: int = FIXED_BYTES + attributes + pixels * ImageDataType(data_type).dtype.itemsize
    if size > limits.message_bytes:
        raise LimitError(
            f"the peer announced an image of {size} bytes ({described}); the limit is {limits.message_bytes}"
        )
    return size


def decode_image(data: memoryview, start: int, size: int) -> Image:
    """The image at `start`, with pixels of its own: images are kept, and the wire does not align them.

    Raises:
        ProtocolError: the attributes are not XML of the known form.
    """
    header = np.frombuffer(data, IMAGE_HEADER, 1, start + 2)[0:1].reshape(()).copy()
    _, _, data_type, x, y, z, channels, _, attributes = _FIXED.unpack_from(data, start)
    header["attribute_string_len"] = attributes
    behind = start + FIXED_BYTES + attributes
    meta = read_attributes(bytes(data[start + FIXED_BYTES : behind]))
    pixels = np.empty((channels, z, y, x), ImageDataType(data_type).dtype)
    pixels.reshape(-1).view(np.uint8)[:] = np.frombuffer(data[behind : start + size], np.uint8)
    return Image(header, pixels, meta)


def encode_image(image: Image) -> Buffers:
    """The bytes of the image; the pixels are not copied when they are contiguous and little-endian.

    Raises:
        ProtocolError: the header does not agree with the pixels, or an attribute has no name.
    """
    header = image.header.copy()
    data_type = int(header["data_type"])
    if data_type not in set(ImageDataType) or image.pixels.dtype.newbyteorder("<") != ImageDataType(data_type).dtype:
        raise ProtocolError(
            f"we may not send pixels of type {image.pixels.dtype} as data_type {data_type}", kind="bad_header"
        )
    x, y, z = (int(n) for n in header["matrix_size"])
    announced = (int(header["channels"]), z, y, x)
    if image.pixels.shape != announced or image.pixels.size == 0:
        raise ProtocolError(
            f"we may not send pixels of shape {image.pixels.shape} as channels, z, y, x = {announced}",
            kind="bad_length",
        )
    attributes = write_attributes(image.meta)
    header["attribute_string_len"] = len(attributes)
    pixels = np.ascontiguousarray(image.pixels, ImageDataType(data_type).dtype)
    prefix = (
        MessageId.IMAGE.to_bytes(2, "little") + header.tobytes() + len(attributes).to_bytes(8, "little") + attributes
    )
    return [prefix, pixels.reshape(-1).view(np.uint8).data]
