"""Names that a scanner may ask for.

What a peer sends selects one of these entries and nothing else: it is never imported, opened or used as a path. Torch
is imported only when an entry's factory is loaded, which happens in a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from models.errors import ModelError
from pipelines.assembly.frame import Grouping
from pipelines.errors import ModelUnavailableError, ParameterError, UnknownPipelineError
from pipelines.parameter_help import explain
from pipelines.parameters import (
    AnyParameters,
    CineLsDipParameters,
    ImageParameters,
    JointIpalmParameters,
    MagnitudeFilterParameters,
    Parameters,
    SenseParameters,
    UnrolledParameters,
    ZeroFilledParameters,
)

if TYPE_CHECKING:
    from pipelines.derive.derivation import Derivation
    from pipelines.recon.reconstruction import Reconstruction

ENTRY_POINT_GROUP = "echotrain.pipelines"


@dataclass(frozen=True, slots=True)
class QuickLook:
    """What shows the images of a slow pipeline before they are ready.

    Attributes:
        pipeline: name of an entry with the same grouping when the scan is gated or has phases of its own.
        parameters: its own, where they are not the defaults; those of the scan are taken over from the slow one.
    """

    pipeline: str
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class PipelineEntry:
    """One name in the registry.

    Attributes:
        name: what a scanner asks for.
        summary: one sentence for listings.
        parameters: model that the peer's parameters must satisfy.
        grouping: what the pipeline asks for at a time.
        factory: `module:attribute` of a callable `(parameters, device)` that gives a `Reconstruction`, or with the
            grouping `image` a `Derivation`; imported only in a worker.
        quick_look: what `preview` of its parameters (`SlowParameters`) stands for; None where there is none.
    """

    name: str
    summary: str
    parameters: type[AnyParameters]
    grouping: Grouping
    factory: str
    quick_look: QuickLook | None = None

    @property
    def gated_grouping(self) -> Grouping:
        """What the pipeline asks for at a time when the scan is gated.

        Phases that gating makes come together: each may lack lines, also at the centre of k-space, and they share the
        coil maps of all.
        """
        return Grouping.CINE if self.grouping in {Grouping.SLICE, Grouping.STACK} else self.grouping

    @property
    def takes_images(self) -> bool:
        """Whether it takes images of the peer instead of readouts."""
        return self.grouping is Grouping.IMAGE

    def parse(self, values: Mapping[str, object]) -> AnyParameters:
        """Check parameters that came as text or JSON; MRD peers send every value as a string.

        Raises:
            ParameterError: a parameter is unknown or out of range; the message names it, what came, and what is
                allowed.
        """
        try:
            return self.parameters.model_validate(dict(values))
        except ValidationError as error:
            raise ParameterError(f"pipeline {self.name!r}: {explain(self.parameters, error)}") from error

    def preview(self, values: Mapping[str, object]) -> tuple[str, dict[str, object]] | None:
        """Name and parameters of what to make a preview with, if these parameters ask for one."""
        if self.quick_look is None or not values.get("preview"):
            return None
        given = {**of_the_scan(values), **self.quick_look.parameters}
        return self.quick_look.pipeline, find(self.quick_look.pipeline).parse(given).model_dump()

    def load(self, parameters: AnyParameters, device: str) -> Reconstruction | Derivation:
        """Import the factory and make what it gives; only workers call this.

        Raises:
            ModelUnavailableError: the pipeline's model is missing, or does not match its card.
        """
        module, _, attribute = self.factory.partition(":")
        try:
            made = cast("Any", getattr(import_module(module), attribute))(parameters, device)
        except ModelError as error:
            raise ModelUnavailableError(f"pipeline {self.name!r}: {error}") from error
        return cast("Reconstruction | Derivation", made)


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
    PipelineEntry(
        "joint_ipalm",
        "Image and coil maps together, with a learned energy of images as prior; uncertainty by sampling.",
        JointIpalmParameters,
        Grouping.SLICE,
        "pipelines.recon.joint_ipalm:JointIpalm",
        QuickLook("sense"),
    ),
    PipelineEntry(
        "cine_ls_dip",
        "All frames of a slice together: low rank plus sparse with two networks that learn from this scan alone.",
        CineLsDipParameters,
        Grouping.CINE,
        "pipelines.recon.cine_ls_dip:CineLsDip",
        QuickLook("cine_ls_dip", {"method": "low_rank_sparse"}),
    ),
    PipelineEntry(
        "unrolled",
        "A trained network that unrolls gradient descent, in one pass; uncertainty predicted and from noise.",
        UnrolledParameters,
        Grouping.STACK,
        "pipelines.recon.unrolled:UnrolledNetwork",
    ),
    PipelineEntry(
        "pass_through",
        "Images go back as they came: a test of a scanner's image road.",
        ImageParameters,
        Grouping.IMAGE,
        "pipelines.derive.pass_through:PassThrough",
    ),
    PipelineEntry(
        "magnitude_filter",
        "A smoothed copy of each magnitude image, with the noise left in it.",
        MagnitudeFilterParameters,
        Grouping.IMAGE,
        "pipelines.derive.magnitude_filter:MagnitudeFilter",
    ),
)


def of_the_scan(values: Mapping[str, object]) -> dict[str, object]:
    """Those parameters that all pipelines from readouts have: what the scanner said of its scan."""
    return {name: values[name] for name in Parameters.model_fields if name in values}


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
