"""The assembly of a scan as its pipeline wants it: straight into groups, or sorted into cardiac phases before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import SlotSource
from pipelines.assembly.frame import Group, Grouping, NoiseCovariance
from pipelines.assembly.gating import GatedAssembly, Gating
from pipelines.assembly.limits import AssemblyLimits
from pipelines.errors import AssemblyError
from pipelines.mrd import Acquisitions, Waveform
from pipelines.scan_header import ScanHeader, TrajectoryType


class Assembly(Protocol):
    """Readouts and waveforms in, groups out; `Assembler` says more of each method."""

    def add(self, batch: Acquisitions) -> list[Group]:
        """Take readouts of one shape; nothing of the batch is kept. Returns groups that are complete now."""
        ...

    def add_waveform(self, waveform: Waveform) -> None:
        """Take a physiology waveform."""
        ...

    def finish(self) -> list[Group]:
        """Hand on what is left, at CLOSE."""
        ...

    def abandon(self) -> None:
        """Give back all memory."""
        ...

    def take_ready(self) -> list[Group]:
        """Groups that were complete before a method raised."""
        ...

    def take_warnings(self) -> list[str]:
        """Sentences for the scanner since the last call."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """Readouts by what became of them."""
        ...

    @property
    def noise(self) -> NoiseCovariance | None:
        """What the scan's own noise readouts say so far."""
        ...

    @property
    def bytes_held(self) -> int:
        """Memory held."""
        ...


def make_assembly(
    scan: ScanHeader,
    grouping: Grouping,
    slots: SlotSource,
    limits: AssemblyLimits | None = None,
    parameters: Mapping[str, object] | None = None,
    noise: NoiseCovariance | None = None,
    *,
    gated: Grouping | None = None,
) -> Assembly:
    """The assembly for a scan.

    Args:
        scan: the scan header.
        grouping: what the pipeline asks for at a time.
        slots: where k-space goes.
        limits: what the scan may ask for.
        parameters: of the pipeline, checked; with `cardiac_phases` the scan is gated.
        noise: for a scan that brings no noise readouts of its own.
        gated: what is asked for at a time when the scan is gated; as `grouping` by default.

    Raises:
        AssemblyError: the header describes what cannot be assembled.
        BudgetError: the header announces more than the limits allow.
    """
    limits, parameters = limits or AssemblyLimits(), parameters or {}
    n_phases = cast("int", parameters.get("cardiac_phases", 0))
    if n_phases < 2:
        return Assembler(scan, grouping, slots, limits, noise)
    _check_spokes(scan)
    gating = Gating(
        n_phases,
        source=cast("str", parameters.get("gating", "auto")),
        rr_window=cast("float", parameters.get("rr_window", 0.25)),
        view_sharing=cast("int", parameters.get("view_sharing", 0)),
    )
    return GatedAssembly(scan, (grouping, gated or grouping), slots, limits, gating, noise)


def _check_spokes(scan: ScanHeader) -> None:
    """Refuse to gate spokes that only their running number tells apart: gating leaves readouts out before it counts.

    Raises:
        AssemblyError: a radial encoding space without limits of its counter.
    """
    for number, encoding in enumerate(scan.encodings):
        is_radial = encoding.trajectory in {TrajectoryType.RADIAL, TrajectoryType.GOLDENANGLE}
        if is_radial and "kspace_encode_step_1" not in encoding.limits:
            raise AssemblyError(
                f"encoding space {number}: expected limits of kspace_encoding_step_1 to gate a "
                f"{encoding.trajectory.value} scan, found none"
            )
