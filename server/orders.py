"""What is done with a group: the job asked for, a quick one for a preview, and others for when it fails.

A reconstruction that fails or takes too long must not cost the scan its images: others are tried in turn, and what they
make is marked, as series of its own: `FALLBACK_OFFSET` above those asked for, with `ReconDegraded` and why. Knows no
executor and no socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from pipelines import registry
from pipelines.assembly.frame import Group
from pipelines.errors import ModelUnavailableError, ParameterError, ReconstructionError
from pipelines.image_group import ImageGroup
from pipelines.mrd import Image
from pipelines.preview import SERIES_OFFSET as PREVIEW_OFFSET
from pipelines.registry import PipelineEntry, of_the_scan
from server.config import Pipelines
from server.errors import ExecutionError, OutOfMemoryError, OverdueError, WorkerLostError
from server.execution.executor import Job
from server.metrics import product_version
from server.selection import Selection

FALLBACK_OFFSET: Final = PREVIEW_OFFSET + 10_000
SOFT: Final = 0.8
"""Part of a budget after which a pipeline that can end early does."""


class FallbackReason(StrEnum):
    """Why another pipeline made the image; labels of `echotrain_fallback_total`."""

    OUT_OF_MEMORY = "oom"
    MODEL = "model_unavailable"
    DATA = "reconstruction_failed"
    TIMEOUT = "timeout"
    WORKER = "worker_lost"
    EXECUTION = "execution"


_REASONS: Final[tuple[tuple[type[Exception], FallbackReason], ...]] = (
    (OutOfMemoryError, FallbackReason.OUT_OF_MEMORY),
    (OverdueError, FallbackReason.TIMEOUT),
    (WorkerLostError, FallbackReason.WORKER),
    (ExecutionError, FallbackReason.EXECUTION),
    (ModelUnavailableError, FallbackReason.MODEL),
    (ReconstructionError, FallbackReason.DATA),
)


@dataclass(frozen=True, slots=True)
class Order:
    """Jobs of one group.

    Attributes:
        job: what was asked for.
        preview: what shows it before it is ready; None where nobody asked.
        fallbacks: to be tried in turn when it fails.
    """

    job: Job
    preview: Job | None = None
    fallbacks: tuple[Job, ...] = ()


def order(session: str, entry: PipelineEntry, selection: Selection, group: Group | ImageGroup, of: Pipelines) -> Order:
    """What to do with a group.

    Args:
        session: its id.
        entry: the pipeline selected.
        selection: with its parameters.
        group: the data.
        of: settings: budgets, fallbacks and their parameters.
    """
    provenance = {"ReconSoftwareVersion": product_version(), "ReconSession": session}
    parameters, budget_s = dict(selection.parameters), of.budgets_s.get(entry.name, 0.0)
    if budget_s and parameters.get("time_limit_s", 0.0) is None:
        parameters["time_limit_s"] = SOFT * budget_s
    job = Job(session, entry.name, parameters, group, provenance, budget_s=budget_s)
    quick = entry.preview(parameters)
    preview = None
    if quick is not None:
        preview = replace(job, pipeline=quick[0], parameters=quick[1], is_urgent=True, budget_s=0.0)
    if entry.takes_images:
        return Order(job)
    names = of.fallbacks[of.fallbacks.index(entry.name) + 1 :] if entry.name in of.fallbacks else of.fallbacks
    others = tuple(
        replace(
            job,
            pipeline=name,
            parameters=_parameters(name, of.parameters.get(name, {}), parameters),
            is_urgent=True,
            budget_s=of.budgets_s.get(name, 0.0),
        )
        for name in names
    )
    return Order(job, preview, others)


def fallback_reason(error: Exception) -> FallbackReason | None:
    """Why another pipeline is tried after this error; None where it would be of no use."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), None)


def as_fallback(image: Image, asked: str, made_by: str, why: str) -> Image:
    """An image marked as made by another pipeline than the one asked for.

    Args:
        image: not changed.
        asked: the pipeline that failed.
        made_by: the one that did not.
        why: a sentence.
    """
    header = image.header.copy()
    header["image_series_index"] += FALLBACK_OFFSET
    meta = {**image.meta, "ReconDegraded": ["true"], "ReconInsteadOf": [asked], "ReconDegradedReason": [why]}
    comment = f"DEGRADED: made by {made_by}, because {asked} failed"
    meta["ImageComments"] = ["; ".join([comment, *image.meta.get("ImageComments", [])])]
    for name in ("SeriesDescription", "SequenceDescriptionAdditional"):
        if name in image.meta:
            meta[name] = [f"{text}_DEGRADED" for text in image.meta[name]]
    return Image(header, image.pixels, meta)


def _parameters(name: str, own: Mapping[str, object], asked: Mapping[str, object]) -> dict[str, object]:
    """Parameters of a fallback: those of the settings, and what the scanner said of its scan."""
    entry, scan = registry.find(name), of_the_scan(asked)
    try:
        return entry.parse({**own, **scan}).model_dump()
    except ParameterError:  # parts of the image that it cannot give
        return entry.parse({**own, **{key: value for key, value in scan.items() if key != "parts"}}).model_dump()
