"""What is known about a set of weights, for programs and for people: the card. Knows no torch and no files.

A card is JSON with the fields below; an unknown field is refused, so that a misspelt one is not lost, and `format`
says which version of this description it follows. Weights without a card are not served.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from models.errors import CardError

FORMAT: Final = 1
NAME: Final = r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*"
"""Names of models: what peers may ask for and what files are called, so nothing that a path could be made of."""

VERSION: Final = r"(?:0|[1-9]\d{0,4})(?:\.(?:0|[1-9]\d{0,4})){2}"

Sentence = Annotated[str, Field(min_length=1, max_length=2000)]
Part = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]


class Record(BaseModel):
    """Base of a card and its parts: frozen, no unknown fields, no numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSource(Record):
    """Data that a model was trained on."""

    name: Sentence = Field(description="What the data are called, with what of them was used.")
    licence: Sentence = Field(description="Licence of the data by its SPDX identifier, such as CC0-1.0.")
    source: Sentence = Field(description="Where they come from: address or DOI.")
    attribution: str = Field(default="", max_length=2000, description="Words that the licence asks for; empty if none.")


class Training(Record):
    """How the weights came about, so that it can be done again."""

    command: Sentence = Field(description="Command line that trained them.")
    seed: int = Field(description="Seed of all random numbers.")
    updates: int = Field(ge=0, description="Steps of the optimiser.")
    device: Sentence = Field(description="What computed: kind of CPU or GPU.")
    duration_s: float = Field(ge=0, description="How long it took, in seconds.")
    code_version: str = Field(default="", description="Version or commit of the program.")
    settings: dict[str, JsonValue] = Field(
        default={}, description="Hyperparameters beside those of the architecture, by name."
    )


class Domain(Record):
    """What results look like on data of the kind that the model knows; a result outside is marked."""

    energy_per_pixel: Range | None = Field(
        default=None, description="Least and greatest energy of a result, in nats a pixel."
    )
    data_residual: Range | None = Field(
        default=None,
        description="Least and greatest mean square of the residual of the data over the noise variance: 1 is noise"
        " alone.",
    )

    @model_validator(mode="after")
    def _are_ranges(self) -> Domain:
        for name in ("energy_per_pixel", "data_residual"):
            limits: Range | None = getattr(self, name)
            if limits is not None and not limits[0] < limits[1]:
                raise ValueError(f"{name}: the first number must be less than the second, not {limits}")
        return self

    def outside(self, *, energy_per_pixel: float | None = None, data_residual: float | None = None) -> tuple[str, ...]:
        """Names of the values that lie outside their range or are no numbers; what is None is not checked."""
        checks = {
            "energy_per_pixel": (energy_per_pixel, self.energy_per_pixel),
            "data_residual": (data_residual, self.data_residual),
        }
        return tuple(
            name
            for name, (value, limits) in checks.items()
            if value is not None and limits is not None and not limits[0] <= value <= limits[1]
        )


class CalibrationRecord(Record):
    """How the deviation maps of one pipeline with this model are scaled, and how well they then cover the error."""

    pipeline: str = Field(description="Pipeline that was calibrated.")
    mode: str = Field(description="Kind of deviation it made, such as quick or langevin.")
    factor: float = Field(gt=0, description="What deviations are multiplied by.")
    floor: float = Field(
        default=0.0,
        ge=0,
        description="Added to deviations, in bright intensities of the image (99th percentile of its magnitude).",
    )
    level: float = Field(gt=0, lt=1, description="Coverage aimed at, such as 0.9.")
    n_scans: int = Field(ge=1, description="Scans, the exchangeable units, that it was found from.")
    coverage: dict[Part, Part] = Field(
        default={}, description="Part of the errors inside the interval, by its nominal level."
    )
    note: str = Field(default="", max_length=2000, description="On what data, with which sampling.")


class IntensityCurve(Record):
    """Knots of a monotone curve from intensities of results to true ones, cubic between them.

    Intensities are in bright intensities of the result (99th percentile of its magnitude). Between knots the curve is
    a monotone cubic (Fritsch and Butland 1984), beyond the last it goes on with slope 1: see
    `models.training.intensity.IntensityMap`, which makes the map of these knots.
    """

    inputs: tuple[float, ...] = Field(min_length=2, description="Intensities of results, rising from 0.")
    outputs: tuple[float, ...] = Field(min_length=2, description="True intensities, rising from 0; one an input.")

    @model_validator(mode="after")
    def _rises(self) -> IntensityCurve:
        if len(self.inputs) != len(self.outputs):
            raise ValueError(f"{len(self.inputs)} inputs and {len(self.outputs)} outputs; as many are needed")
        for name, values in (("inputs", self.inputs), ("outputs", self.outputs)):
            if values[0] != 0 or any(a >= b for a, b in pairwise(values)):
                raise ValueError(f"{name} must rise from 0 from knot to knot, not {values}")
        return self


class CardDraft(Record):
    """A card before its weights are written; `models.store.save_model` makes the card of it."""

    format: Literal[1] = Field(default=FORMAT, description="Version of this description.")
    name: str = Field(pattern=f"^{NAME}$", max_length=64, description="Name of the model.")
    version: str = Field(pattern=f"^{VERSION}$", description="Version as MAJOR.MINOR.PATCH.")
    summary: Sentence = Field(description="One sentence: what it is for.")
    architecture: str = Field(description="Name in `models.architectures`.")
    configuration: dict[str, JsonValue] = Field(description="Arguments of the architecture's constructor.")
    licence: Sentence = Field(description="Licence of the weights by its SPDX identifier.")
    data: tuple[DataSource, ...] = Field(min_length=1, description="All data it was trained on.")
    training: Training = Field(description="How it was trained.")
    domain: Domain = Field(default=Domain(), description="What results look like on data that it knows.")
    calibration: tuple[CalibrationRecord, ...] = Field(
        default=(), description="Scaling of deviations, by pipeline and mode."
    )
    intensity: IntensityCurve | None = Field(
        default=None, description="Correction of intensities; none if none is needed."
    )
    metrics: dict[str, float] = Field(default={}, description="Figures of merit by name, with the unit in the name.")
    limits: tuple[Sentence, ...] = Field(min_length=1, description="What it is not for and where it fails.")

    @property
    def title(self) -> str:
        """Name and version as one asks for them: `name@version`."""
        return f"{self.name}@{self.version}"


class Card(CardDraft):
    """A card with the digest of its weights."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the file of weights.")
    bytes: int = Field(gt=0, description="Size of the file of weights.")

    def revised(self, **changes: object) -> Card:
        """The card with other values in some fields.

        Raises:
            CardError: a field is unknown or a value impossible.
        """
        return parse_card({**self.model_dump(), **changes}, self.title)

    def calibration_for(self, pipeline: str, mode: str) -> CalibrationRecord | None:
        """How deviations of this pipeline and mode are scaled; the last record where there are several."""
        found = [record for record in self.calibration if (record.pipeline, record.mode) == (pipeline, mode)]
        return found[-1] if found else None

    def json_text(self) -> str:
        """The card as it is kept."""
        return self.model_dump_json(indent=2) + "\n"

    def markdown(self) -> str:
        """The card for people."""
        from models.card_text import markdown

        return markdown(self)


def parse_card(values: object, title: str) -> Card:
    """A card from decoded JSON.

    Raises:
        CardError: another format, an unknown or missing field, or an impossible value; the message names it.
    """
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise CardError(f"model {title}: the card has format {found!r}, but this version reads format {FORMAT}")
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        raise CardError(f"model {title}: the card is wrong: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    parts: list[str] = []
    for problem in error.errors(include_url=False):
        details: dict[str, Any] = dict(problem)
        place = ".".join(str(part) for part in details["loc"]) or "card"
        message = "unknown field" if details["type"] == "extra_forbidden" else str(details["msg"])
        parts.append(f"{place}: {message}")
    return "; ".join(parts)
