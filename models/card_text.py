"""A card as Markdown, to be read by those who decide whether a model may be used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models.card import Card, Domain


def markdown(card: Card) -> str:
    """The whole card as Markdown."""
    sections = [
        (f"# {card.title}", [card.summary]),
        ("", _table(("what", "value"), _facts(card))),
        ("## Data", _data(card)),
        ("## Training", _table(("what", "value"), _training(card))),
        ("## Domain", _domain(card.domain)),
        ("## Calibration of the uncertainty", _calibration(card)),
        ("## Figures", _table(("metric", "value"), [(name, f"{value:g}") for name, value in card.metrics.items()])),
        ("## Limits", [f"- {limit}" for limit in card.limits]),
    ]
    blocks = ["\n\n".join(filter(None, (heading, "\n".join(lines)))) for heading, lines in sections if lines]
    return "\n\n".join(blocks) + "\n"


def _facts(card: Card) -> list[tuple[str, str]]:
    configuration = ", ".join(f"{name}={value}" for name, value in card.configuration.items()) or "none"
    return [
        ("architecture", card.architecture),
        ("configuration", configuration),
        ("licence", card.licence),
        ("size", f"{card.bytes / 1e6:.2f} MB"),
        ("SHA-256", f"`{card.sha256}`"),
        ("intensity", f"corrected, {len(card.intensity.inputs)} knots" if card.intensity else "not corrected"),
    ]


def _data(card: Card) -> list[str]:
    lines: list[str] = []
    for source in card.data:
        lines.append(f"- {source.name} ({source.licence}), {source.source}")
        if source.attribution:
            lines.append(f"  {source.attribution}")
    return lines


def _training(card: Card) -> list[tuple[str, str]]:
    training = card.training
    facts = [
        ("command", f"`{training.command}`"),
        ("seed", str(training.seed)),
        ("updates", str(training.updates)),
        ("device", training.device),
        ("duration", f"{training.duration_s:.0f} s"),
    ]
    if training.code_version:
        facts.append(("code", training.code_version))
    return facts + [(name, str(value)) for name, value in training.settings.items()]


def _domain(domain: Domain) -> list[str]:
    units = {"energy_per_pixel": " nats", "data_residual": " times the noise variance"}
    lines: list[str] = []
    for name, unit in units.items():
        limits: tuple[float, float] | None = getattr(domain, name)
        shown = f"{limits[0]:g} to {limits[1]:g}{unit}" if limits else "not checked"
        lines.append(f"- {name.replace('_', ' ')}: {shown}")
    return lines


def _calibration(card: Card) -> list[str]:
    if not card.calibration:
        return ["None: deviations are as the method gives them."]
    rows: list[tuple[str, ...]] = []
    for record in card.calibration:
        coverage = ", ".join(f"{part:.1%} at {level:.0%}" for level, part in sorted(record.coverage.items()))
        rows.append(
            (
                record.pipeline,
                record.mode,
                f"{record.factor:.3g}",
                f"{record.floor:.3g}",
                f"{record.level:.0%}",
                str(record.n_scans),
                coverage or "not measured",
                record.note,
            )
        )
    return _table(("pipeline", "mode", "factor", "floor", "level", "scans", "coverage", "note"), rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    if not cells:
        return []
    return [f"| {' | '.join(row)} |" for row in (list(headings), ["---"] * len(headings), *cells)]
