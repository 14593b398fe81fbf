"""Results outside the domain of the model that made them: how a reconstruction says so, and what its images say.

A reconstruction puts `domain_details(...)` into its details; everything else follows from there, for every pipeline:
the comment of its images, the warning, the metric, the session's record. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

_DOMAIN: Final = "ReconDomain"
_REASON: Final = "ReconDomainReason"
_INSIDE: Final = "inside"
_OUTSIDE: Final = "outside"
_MODEL: Final = "ReconModel"
_INSTEAD: Final = "ReconInstead"
_ENERGY: Final = "ReconEnergyPerPixel"
_RESIDUAL: Final = "ReconResidual"


class DomainReason(StrEnum):
    """What lies outside; named as the ranges of a card (`models.card.Domain`)."""

    ENERGY_PER_PIXEL = "energy_per_pixel"
    """The result looks unlike the images that the model was trained on."""
    DATA_RESIDUAL = "data_residual"
    """The result does not explain the measured data, or explains their noise as well."""
    OTHER = "other"


def domain_details(outside: Iterable[str]) -> dict[str, str]:
    """Details of a result that was checked against its model's domain; with no reasons it lies inside."""
    reasons = sorted({reason_of(text) for text in outside})
    if not reasons:
        return {_DOMAIN: _INSIDE}
    return {_DOMAIN: _OUTSIDE, _REASON: ", ".join(reasons)}


def reasons_outside(details: Mapping[str, str]) -> tuple[DomainReason, ...]:
    """Why a result with these details lies outside the domain; empty where it does not, or was not checked."""
    if details.get(_DOMAIN) != _OUTSIDE:
        return ()
    texts = details.get(_REASON, "").split(",")
    return tuple(sorted({reason_of(text.strip()) for text in texts}))


def checked_values(details: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Energy a pixel and data residual that are checked against the domain; None what the model did not give.

    A result without a model has none, whatever it calls a residual; nor has one that was made instead of the model's.
    """
    if _MODEL not in details or _INSTEAD in details:
        return None, None
    energy, residual = details.get(_ENERGY), details.get(_RESIDUAL)
    return None if energy is None else float(energy), None if residual is None else float(residual)


def reason_of(text: str) -> DomainReason:
    """A reason by its name; any other text is `other`."""
    return DomainReason(text) if text in set(DomainReason) else DomainReason.OTHER


def domain_comment(details: Mapping[str, str]) -> str:
    """What an image says to whoever looks at it; empty where there is nothing to say."""
    reasons = reasons_outside(details)
    if not reasons:
        return ""
    shown = ", ".join(reason.replace("_", " ") for reason in reasons)
    return f"OUTSIDE THE DOMAIN OF THE MODEL ({shown}): compare with another reconstruction"
