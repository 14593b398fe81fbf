"""Names that a scanner may ask for.

What a peer sends selects one of these entries and nothing else: it is never imported, opened or used as a path. Torch
is
imported only when an entry's factory is loaded, which happens in a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.assembly.frame import Grouping
from pipelines.errors import ParameterError, UnknownPipelineError

if TYPE_CHECKING:
    from pipelines.recon.reconstruction import Reconstruction

ENTRY_POINT_GROUP = "echotrain.pipelines"


class Parameters(BaseModel):
    """Parameters that every pipeline has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    whiten: bool = Field(
        True, description="Whiten coils with the noise scan; off for data that the scanner has already whitened."
    )
    coil_compression: int = Field(0, ge=0, le=256, description="Virtual coils to compress to; 0 keeps all coils.")
    trajectory_units: Literal["auto", "cycles_per_pixel", "radians_per_pixel", "cycles_per_fov"] = Field(
        "auto",
        description="Units of non-Cartesian trajectories: of the encoded pixel along x, or of the field of view of the "
        "images; by default told from the farthest sample.",
    )


class ZeroFilledParameters(Parameters):
    """Parameters of `zero_filled`."""

    combine: Literal["rss", "sensitivity"] = Field(
        "rss", description="Coil combination: root sum of squares, or weighted by estimated sensitivities."
    )


class SenseParameters(Parameters):
    """Parameters of `sense`."""

    iterations: int = Field(30, ge=1, le=500, description="Most conjugate-gradient iterations.")
    tolerance: float = Field(1e-4, gt=0, lt=1, description="Relative residual at which the solver stops.")
    regularisation: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Tikhonov weight relative to the largest eigenvalue of the normal operator; by default from the "
        "measured noise, 0.001 to 0.03. Lowered to the noise where calibration lines were measured apart. "
        "Non-Cartesian: weight of the image's slope, relative at half the largest spatial frequency.",
    )


@dataclass(frozen=True, slots=True)
class PipelineEntry:
    """One name in the registry.

    Attributes:
        name: what a scanner asks for.
        summary: one sentence for listings.
        parameters: model that the peer's parameters must satisfy.
        grouping: what the pipeline asks for at a time.
        factory: `module:attribute` of a callable `(parameters, device) -> Reconstruction`; imported only in a worker.
    """

    name: str
    summary: str
    parameters: type[Parameters]
    grouping: Grouping
    factory: str

    def parse(self, values: Mapping[str, object]) -> Parameters:
        """Check parameters that came as text or JSON; MRD peers send every value as a string.

        Raises:
            ParameterError: a parameter is unknown or out of range; the message names it.
        """
        try:
            return self.parameters.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part)[:64] for part in first["loc"])
            raise ParameterError(f"pipeline {self.name!r}, parameter {where!r}: {first['msg']}") from error

    def load(self, parameters: Parameters, device: str) -> Reconstruction:
        """Import the factory and make the reconstruction; only workers call this."""
        module, _, attribute = self.factory.partition(":")
        return cast("Reconstruction", cast("Any", getattr(import_module(module), attribute))(parameters, device))


_BUILT_IN = (
    PipelineEntry(
        "zero_filled",
        "Inverse Fourier transform of what was measured, coils combined; the last fallback.",
        ZeroFilledParameters,
        Grouping.SLICE,
        "pipelines.recon.zero_filled:ZeroFilled",
    ),
    PipelineEntry(
        "sense",
        "Least-squares parallel imaging with estimated coil sensitivities; the fallback of learned methods.",
        SenseParameters,
        Grouping.SLICE,
        "pipelines.recon.sense:Sense",
    ),
)


@cache
def pipelines() -> dict[str, PipelineEntry]:
    """All entries by name: the built-in ones and those of installed distributions, which cannot replace a built-in."""
    found = {entry.name: entry for entry in _BUILT_IN}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        entry = cast("PipelineEntry", point.load())
        found.setdefault(entry.name, entry)
    return found


def find(name: str) -> PipelineEntry:
    """The entry of that name.

    Raises:
        UnknownPipelineError: no such name; the message lists the valid ones.
    """
    entry = pipelines().get(name)
    if entry is None:
        shown = name[:64].encode("unicode_escape").decode("ascii")
        raise UnknownPipelineError(f"unknown pipeline '{shown}'; this server offers: {', '.join(sorted(pipelines()))}")
    return entry
