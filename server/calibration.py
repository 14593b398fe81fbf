"""What `echotrain calibrate` finds in judged results, and what of it goes into the card of a model. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from models.card import Card, Domain
from models.catalogue import Entry, read_card
from models.store import save_card
from models.training.calibration import CalibrationReport, assess
from models.training.compared import ComparedScan, by_scan, split
from models.training.conformal import Guarantee, Scaling, choose, fit_scaling
from models.training.domain import fit_domain
from models.training.intensity import IntensityMap, correct_intensity, fit_intensity_of
from pipelines.domain import checked_values
from pipelines.evaluation.comparison import Condition, JudgedCase
from pipelines.recon.card_calibration import CONFORMAL
from server.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What calibration found.

    Attributes:
        scaling: fitted to the calibration half.
        intensity: correction fitted to it, if asked for.
        domain: ranges of energy and data residual in the calibration half; none for pipelines without a model.
        n_outside: images of the test half that lie outside of it.
        test: scans of the test half, scaled.
        before: report of the test half before scaling.
        after: the same after scaling.
        by_condition: after scaling, each way of measuring apart.
    """

    scaling: Scaling
    intensity: IntensityMap | None
    domain: Domain
    n_outside: int
    test: list[ComparedScan]
    before: CalibrationReport
    after: CalibrationReport
    by_condition: dict[str, CalibrationReport]


@dataclass(frozen=True, slots=True)
class Request:
    """What the user wants to be promised."""

    guarantee: Guarantee | None
    level: float
    delta: float
    floor: float
    most_risk: float
    fits_intensity: bool


def halves(judged: Sequence[JudgedCase], seed: int) -> tuple[list[JudgedCase], list[JudgedCase]]:
    """Whole scans, drawn by seed, to calibrate on and to test on.

    Raises:
        SettingsError: only one scan.
    """
    try:
        calibration, _ = split(_scans(judged), seed)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    names = {scan.name for scan in calibration}
    return [each for each in judged if each.scan in names], [each for each in judged if each.scan not in names]


def fit(
    calibrating: Sequence[JudgedCase],
    testing: Sequence[JudgedCase],
    conditions: Sequence[Condition],
    asked: Request,
) -> Outcome:
    """Fit to some scans, judge others.

    Raises:
        SettingsError: what was asked for cannot be had from so many scans.
    """
    calibration = _scans(calibrating)
    try:
        curve = fit_intensity_of(calibration) if asked.fits_intensity else None
        calibration = correct_intensity(calibration, curve) if curve else calibration
        guarantee = asked.guarantee or choose(len(calibration), asked.level, asked.delta)
        scaling = fit_scaling(
            calibration, guarantee, level=asked.level, floor=asked.floor, delta=asked.delta, most_risk=asked.most_risk
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error

    def corrected(judged: Iterable[JudgedCase]) -> list[ComparedScan]:
        return correct_intensity(_scans(judged), curve) if curve else _scans(judged)

    domain = _domain(calibrating)
    outside = [each for each in testing if _is_outside(domain, each)]
    test = corrected(testing)
    parts = {condition: [each for each in testing if each.condition == condition] for condition in conditions}
    by_condition = {each.title: assess(scaling.apply(corrected(part))) for each, part in parts.items()}
    scaled = scaling.apply(test)
    return Outcome(scaling, curve, domain, len(outside), scaled, assess(test), assess(scaled), by_condition)


def mode_of(judged: Iterable[JudgedCase]) -> str:
    """Kind of deviation, which a factor is stored for; of samples, how long the chains were.

    Raises:
        SettingsError: there are several kinds, of which no factor suits all.
    """
    modes = sorted({each.details.get("ReconPosterior", each.kind).partition(":")[0] for each in judged})
    if len(modes) > 1:
        raise SettingsError(f"results have deviations of several kinds ({', '.join(modes)}): no factor suits all")
    return modes[0]


def store(entry: Entry, record: dict[str, object], outcome: Outcome, calibrating: Sequence[JudgedCase]) -> str:
    """Add the record to the card of a model, in place of an older one of the same pipeline and mode.

    Raises:
        SettingsError: the deviations had a factor applied already, or results were made without this model.
        ModelError: the card cannot be read or written.
    """
    card = read_card(entry)
    if any(each.calibration.startswith(CONFORMAL) for each in calibrating):
        raise SettingsError("the pipeline has scaled its deviations already; turn that off before calibrating")
    if any(each.details.get("ReconModelDigest") != card.sha256 for each in calibrating):
        raise SettingsError(f"results were not made with {card.title}: its card cannot say how they are calibrated")
    save_card(entry.root, _revised(card, record, outcome))
    return f"stored in the card of {card.title}"


def _domain(judged: Iterable[JudgedCase]) -> Domain:
    try:
        return fit_domain([checked_values(each.details) for each in judged])
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _is_outside(domain: Domain, judged: JudgedCase) -> bool:
    energy, residual = checked_values(judged.details)
    return bool(domain.outside(energy_per_pixel=energy, data_residual=residual))


def _scans(judged: Iterable[JudgedCase]) -> list[ComparedScan]:
    return by_scan((each.scan, each.compared) for each in judged)


def _revised(card: Card, record: dict[str, object], outcome: Outcome) -> Card:
    """The card with what was found; ranges of a domain that was not looked at stay."""
    kept = [
        each.model_dump()
        for each in card.calibration
        if (each.pipeline, each.mode) != (record["pipeline"], record["mode"])
    ]
    changes: dict[str, object] = {"calibration": [*kept, record]}
    if outcome.intensity is not None:
        changes["intensity"] = asdict(outcome.intensity)
    found = {name: limits for name, limits in outcome.domain.model_dump().items() if limits is not None}
    changes["domain"] = {**card.domain.model_dump(), **found}
    return card.revised(**changes)
