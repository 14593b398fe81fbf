"""Which layout the readouts of each encoding space of a scan have: the place where the trajectory type decides."""

from __future__ import annotations

from pipelines.assembly.arrival import Arrival
from pipelines.assembly.frame import Grouping
from pipelines.assembly.grid import CARTESIAN, Grid
from pipelines.assembly.layout import Layout, frame_axis
from pipelines.errors import AssemblyError, BudgetError
from pipelines.scan_header import Encoding, ScanHeader


def layout_of(encoding: Encoding, number: int, grouping: Grouping) -> Layout:
    """The layout of one encoding space.

    Raises:
        AssemblyError: readouts of this trajectory are not assembled.
        BudgetError: the header announces more than any scan has.
    """
    axis = frame_axis(encoding, grouping)
    return Grid(encoding, number, axis) if encoding.trajectory in CARTESIAN else Arrival(encoding, number, axis)


class EncodingSpaces:
    """Layouts by the number of their encoding space."""

    def __init__(self, scan: ScanHeader, grouping: Grouping) -> None:
        """The layouts of a scan.

        Raises:
            AssemblyError: none of the encoding spaces can be assembled; of one that cannot, `layout` says so.
            BudgetError: the header announces more than any scan has.
        """
        self._layouts: list[Layout | AssemblyError] = []
        for number, encoding in enumerate(scan.encodings):
            try:
                self._layouts.append(layout_of(encoding, number, grouping))
            except BudgetError:
                raise
            except AssemblyError as error:
                self._layouts.append(error)
        if not self.usable:
            self.layout(0)

    @property
    def usable(self) -> list[Layout]:
        """Those whose readouts can be assembled."""
        return [layout for layout in self._layouts if isinstance(layout, Layout)]

    def grid(self, number: int) -> Grid | None:
        """The grid of one encoding space; None when it has none."""
        layout = self._layouts[number] if number < len(self._layouts) else None
        return layout if isinstance(layout, Grid) else None

    def layout(self, number: int) -> Layout:
        """The layout of one encoding space.

        Raises:
            AssemblyError: there is no such space, or its readouts cannot be assembled.
        """
        if number >= len(self._layouts):
            raise AssemblyError(f"encoding_space_ref {number}: the header has {len(self._layouts)} encoding spaces")
        layout = self._layouts[number]
        if isinstance(layout, AssemblyError):
            raise layout
        return layout
