"""How much memory a scan needs, from its header alone: known and refused before anything is allocated.

Cartesian groups take exactly what is said here. Of non-Cartesian ones the header does not tell the length of a readout,
and without limits not their number: what is said is that of readouts as long as the encoded matrix, as many as
announced or as the matrix has lines; the same check is repeated with the first readout and whenever a group grows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from pipelines.assembly.encoding_spaces import EncodingSpaces
from pipelines.assembly.frame import Grouping
from pipelines.assembly.group_buffer import BufferShape
from pipelines.assembly.layout import GROUP_COUNTERS, Layout
from pipelines.errors import AssemblyError, BudgetError
from pipelines.scan_header import Encoding, ScanHeader


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What assembly of one encoding space needs.

    Attributes:
        group_bytes: one group; a stack counts its slice and the neighbours.
        n_groups: groups that can be open at a time, when the scan interleaves everything that it may.
        open_bytes: all of them together; slices that stacks share count once.
    """

    group_bytes: int
    n_groups: int
    open_bytes: int


def memory_need(encoding: Encoding, layout: Layout, grouping: Grouping, n_coils: int) -> MemoryNeed:
    """What one encoding space needs with this number of coils."""
    frame_bytes = expected_shape(encoding, layout, n_coils).n_bytes
    lengths = {name: _length(encoding, name) for name in GROUP_COUNTERS}
    if layout.axis.position is not None:
        lengths[layout.axis.name] = 1
    n_groups = prod(lengths.values())
    n_slices = min(3, lengths["slice"]) if grouping is Grouping.STACK else 1
    return MemoryNeed(n_slices * frame_bytes, n_groups, n_groups * frame_bytes)


def scan_memory(scan: ScanHeader, grouping: Grouping, n_coils: int) -> dict[int, MemoryNeed | AssemblyError]:
    """What each encoding space needs, by number, or why it cannot be assembled."""
    out: dict[int, MemoryNeed | AssemblyError] = {}
    try:
        spaces = EncodingSpaces(scan, grouping)
    except AssemblyError as error:
        return dict.fromkeys(range(len(scan.encodings)), error)
    for number, encoding in enumerate(scan.encodings):
        try:
            out[number] = memory_need(encoding, spaces.layout(number), grouping, n_coils)
        except AssemblyError as error:
            out[number] = error
    return out


def expected_shape(encoding: Encoding, layout: Layout, n_coils: int) -> BufferShape:
    """The buffer of a group, by the header."""
    shape = layout.buffer_shape(n_coils, encoding.encoded.matrix[0], 2)
    return replace(shape, n_rows=layout.likely_rows)


def check_header(scan: ScanHeader, spaces: EncodingSpaces, grouping: Grouping, max_bytes: int) -> None:
    """Refuse a scan whose groups cannot fit, by its header; without receiverChannels, as if it had one coil.

    Raises:
        BudgetError: one group of an encoding space needs more than `max_bytes`.
    """
    n_coils = scan.receiver_channels or 1
    for layout in spaces.usable:
        encoding = scan.encodings[layout.number]
        checked_bytes(expected_shape(encoding, layout, n_coils), layout, max_bytes)
        need = memory_need(encoding, layout, grouping, n_coils)
        if need.group_bytes > max_bytes:
            raise BudgetError(
                f"encoding space {layout.number}: a slice and its neighbours with {n_coils} channels need "
                f"{need.group_bytes} bytes, the limit is {max_bytes}"
            )


def checked_bytes(shape: BufferShape, layout: Layout, max_bytes: int) -> int:
    """The bytes of a group.

    Raises:
        BudgetError: more than `max_bytes`.
    """
    if shape.n_bytes > max_bytes:
        frames = f"{shape.n_frames} frames of " if shape.n_frames > 1 else ""
        raise BudgetError(
            f"encoding space {layout.number}: {frames}{layout.describe_size(shape)} with {shape.n_coils} channels "
            f"needs {shape.n_bytes} bytes, the limit is {max_bytes}"
        )
    return shape.n_bytes


def _length(encoding: Encoding, name: str) -> int:
    limit = encoding.limits.get(name)
    return limit.maximum - limit.minimum + 1 if limit else 1
