"""Cards: what they may say, how they read, and that those we ship hold what they promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from models.card import Card, CardDraft, Domain, parse_card
from models.catalogue import SHIPPED, card_path, entries, find, read_card, strays, weights_path
from models.errors import CardError
from models.store import read_model

LICENCES = {"CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "BSD-2-Clause", "BSD-3-Clause",
            "MIT", "Apache-2.0"}  # fmt: skip
"""Licences that allow to train on data and to hand on the result, in their SPDX spelling."""

MOST_SHIPPED_BYTES = 20_000_000


def change(card: Card, path: str, value: object) -> dict[str, object]:
    """The card as a dictionary with one value, by dotted path, set."""
    values = json.loads(card.json_text())
    *parents, last = path.split(".")
    level = values
    for parent in parents:
        level = level[int(parent)] if parent.isdigit() else level[parent]
    level[last] = value
    return values


def test_a_card_reads_back_as_it_was_written(saved: Card) -> None:
    assert parse_card(json.loads(saved.json_text()), "x") == saved


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("sumary", "x", "sumary: unknown field"),
        ("training.sed", 1, "training.sed: unknown field"),
        ("data.0.license", "MIT", "data.0.license: unknown field"),
        ("data", [], "data: "),
        ("limits", [], "limits: "),
        ("name", "../x", "name: "),
        ("version", "1.0", "version: "),
        ("version", "01.0.0", "version: "),
        ("sha256", "abc", "sha256: "),
        ("metrics", {"psnr_db": "NaN"}, "metrics.psnr_db: "),
        ("domain.data_residual", [1.2, 0.8], "the first number must be less than the second"),
        ("intensity", {"inputs": [0, 1], "outputs": [0, 1, 2]}, "2 inputs and 3 outputs"),
        ("intensity", {"inputs": [0, 0], "outputs": [0, 1]}, "inputs must rise from 0"),
        ("intensity", {"inputs": [0, 1], "outputs": [0.1, 1]}, "outputs must rise from 0"),
        ("calibration", [{"pipeline": "p"}], "calibration.0.factor: Field required"),
    ],
)
def test_a_card_that_says_what_cannot_be_is_refused_by_the_name_of_the_field(
    saved: Card, path: str, value: object, words: str
) -> None:
    with pytest.raises(CardError) as caught:
        parse_card(change(saved, path, value), saved.title)
    assert words in str(caught.value)
    assert str(caught.value).startswith("model tiny-line@1.0.0: ")


@pytest.mark.parametrize("values", [{"format": 2}, {}, [], None, "text"])
def test_another_format_is_told_before_its_fields(values: object) -> None:
    with pytest.raises(CardError, match=r"the card has format .*, but this version reads format 1"):
        parse_card(values, "x@1.0.0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b" " * (1 << 20) + b"{}", "more than 1048576 bytes"),
    ],
)
def test_a_card_that_cannot_be_read_is_refused(directory: Path, saved: Card, text: bytes, words: str) -> None:
    card_path(directory, saved.title).write_bytes(text)
    with pytest.raises(CardError, match=words):
        read_card(find("tiny-line"))


def test_a_card_under_another_name_is_refused(directory: Path, saved: Card) -> None:
    for path in (card_path, weights_path):
        path(directory, saved.title).rename(path(directory, "other@1.0.0"))
    with pytest.raises(CardError, match=r"other@1.0.0: the card is that of tiny-line@1.0.0"):
        read_card(find("other"))


def test_a_revised_card_is_checked_like_any_other(saved: Card) -> None:
    assert saved.revised(metrics={"psnr_db": 31.5}).metrics == {"psnr_db": 31.5}
    with pytest.raises(CardError, match="sumary: unknown field"):
        saved.revised(sumary="x")


def test_people_find_everything_on_the_card(saved: Card) -> None:
    record = {"pipeline": "sense", "mode": "posterior", "factor": 1.5, "level": 0.9, "n_scans": 20,
              "coverage": {0.5: 0.48, 0.9: 0.91}, "note": "a | b"}  # fmt: skip
    full = saved.revised(
        calibration=[record],
        domain={"energy_per_pixel": [-2.5, -1.0]},
        intensity={"inputs": [0, 0.5, 1], "outputs": [0, 0.6, 1]},
        metrics={"psnr_db": 31.5},
    )
    text = full.markdown()
    for words in ("# tiny-line@1.0.0", full.summary, "line", "in_features=3", "MIT", full.sha256, "3 knots",
                  "Nothing (CC0-1.0), https://example.org", "`none`", "0 s", "-2.5 to -1 nats",
                  "data residual: not checked", "48.0% at 50%, 91.0% at 90%", "a \\| b", "psnr_db | 31.5",
                  "- Not for images."):  # fmt: skip
        assert words in text, words
    assert "None: deviations are as the method gives them." in saved.markdown()
    assert "not corrected" in saved.markdown()


@pytest.mark.parametrize(
    ("values", "outside"),
    [
        ({"energy_per_pixel": -2.0, "data_residual": 1.0}, ()),
        ({"energy_per_pixel": -2.6}, ("energy_per_pixel",)),
        ({"energy_per_pixel": float("nan"), "data_residual": 1e9}, ("energy_per_pixel",)),
        ({}, ()),
    ],
)
def test_a_domain_names_what_lies_outside_and_checks_no_range_it_does_not_have(
    values: dict[str, float], outside: tuple[str, ...]
) -> None:
    assert Domain(energy_per_pixel=(-2.5, -1.0)).outside(**values) == outside


def test_every_field_of_a_card_is_described() -> None:
    schema = Card.model_json_schema()
    for kind in (schema, *schema["$defs"].values()):
        if kind.get("type") == "object" and "properties" in kind:
            assert [name for name, field in kind["properties"].items() if not field.get("description")] == []


def test_a_draft_has_every_field_of_a_card_but_digest_and_size() -> None:
    assert Card.model_fields.keys() - CardDraft.model_fields.keys() == {"sha256", "bytes"}


def shipped() -> list[str]:
    return [entry.title for entry in entries() if entry.root == SHIPPED]


def test_nothing_lies_beside_the_models_we_ship() -> None:
    assert strays() == ()


@pytest.mark.parametrize("title", shipped())
def test_a_shipped_model_matches_its_card_and_names_data_that_allow_it(title: str) -> None:
    model = read_model(find(title))
    assert model.card.bytes <= MOST_SHIPPED_BYTES
    assert {licence for source in model.card.data for licence in source.licence.split(" AND ")} <= LICENCES
    assert model.build().state_dict().keys() == model.tensors.keys()


def test_the_licences_asked_for_would_catch_data_without_one(make_draft: Callable[..., CardDraft]) -> None:
    unlicensed = make_draft(data=[{"name": "x", "licence": "none stated", "source": "y"}])
    assert not {source.licence for source in unlicensed.data} <= LICENCES
