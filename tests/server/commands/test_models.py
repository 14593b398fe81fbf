"""`echotrain models`: what is there is listed, shown and verified; the exit status says whether all is well."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.architectures import ARCHITECTURES
from models.card import Card
from models.catalogue import card_path, use_directory, weights_path
from tests import tiny_model


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setitem(ARCHITECTURES, tiny_model.ARCHITECTURE, tiny_model.FACTORY)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("ECHOTRAIN_MODELS__DIRECTORY", str(tmp_path / "models"))
    yield tmp_path / "models"
    use_directory(None)


@pytest.fixture
def card(directory: Path) -> Card:
    return tiny_model.save_tiny(directory)


def spoil(directory: Path, card: Card) -> None:
    path = weights_path(directory, card.title)
    path.write_bytes(bytes(card.bytes))


@pytest.mark.usefixtures("card")
def test_the_list_says_what_there_is(run: Any) -> None:
    done = run("models", "list")
    assert done.status == 0
    (row,) = [line.split() for line in done.lines if "tiny-line" in line]
    assert row == ["tiny-line", "1.0.0", "line", "0.00", "MB", "ok", "MIT", "directory"]
    assert done.errors == ""


def test_the_list_marks_what_does_not_match_and_says_why_on_standard_error(
    run: Any, directory: Path, card: Card
) -> None:
    spoil(directory, card)
    card_path(directory, "other@1.0.0").write_text("{")
    weights_path(directory, "third@1.0.0").write_bytes(b"x")
    (directory / "cards" / "notes.txt").write_text("x")
    done = run("models", "list")
    assert done.status == 0
    by_name = {line.split()[0]: line for line in done.lines if "1.0.0" in line}
    assert "DIFFERS" in by_name["tiny-line"]
    assert "bad card" in by_name["other"]
    assert "no card" in by_name["third"]
    for words in (
        f"the card says {card.sha256}",
        "the card cannot be read",
        "third@1.0.0: it has no card",
        "notes.txt",
    ):
        assert words in done.errors


def test_a_card_is_shown_as_text(run: Any, card: Card) -> None:
    done = run("models", "show", "tiny-line")
    assert (done.status, done.output) == (0, card.markdown())
    assert run("models", "show", "tiny-line@1.0.0").output == done.output


def test_verify_ends_with_status_1_when_anything_does_not_match(run: Any, directory: Path, card: Card) -> None:
    done = run("models", "verify")
    assert (done.status, "tiny-line@1.0.0: ok" in done.lines) == (0, True)
    spoil(directory, card)
    done = run("models", "verify")
    assert (done.status, "tiny-line@1.0.0: does not match" in done.lines) == (1, True)
    assert "tiny-line@1.0.0: the weights have SHA-256" in done.errors


def test_verify_names_a_file_that_belongs_to_no_model(run: Any, directory: Path, card: Card) -> None:
    (directory / "weights" / "stray.pt").write_bytes(b"")
    done = run("models", "verify")
    assert done.status == 1
    assert "stray.pt: this file belongs to no model" in done.errors


def test_a_directory_may_be_named_on_the_command_line(run: Any, tmp_path: Path, directory: Path) -> None:
    tiny_model.save_tiny(tmp_path / "elsewhere", name="elsewhere")
    assert "elsewhere" in run("models", "list", "--directory", tmp_path / "elsewhere").output


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("show", "nothing"), 1),
        (("verify", "--directory", "/nowhere/at/all"), 1),
        (("show",), 2),
        (("list", "tiny-line"), 2),
        (("remove",), 2),
    ],
)
@pytest.mark.usefixtures("card")
def test_what_cannot_be_done_ends_with_its_status(run: Any, arguments: tuple[str, ...], status: int) -> None:
    done = run("models", *arguments)
    assert done.status == status
    assert "Traceback" not in done.errors


def test_doctor_checks_models(run: Any, directory: Path, card: Card) -> None:
    ports = ("--set", "listen.port=0", "--set", "admin.port=0", "--set", "limits.memory_bytes=16777216")
    done = run("doctor", "--quick", *ports)
    assert done.status == 0
    assert re.search(r"ok +models: \d+ with card and digest", done.output)
    spoil(directory, card)
    done = run("doctor", "--quick", *ports)
    assert done.status == 1
    assert "failure models: model tiny-line@1.0.0: the weights have SHA-256" in done.output
    done = run("doctor", "--quick", *ports, "--set", "models.directory=/nowhere/at/all")
    assert done.status == 1
    assert "Correct models.directory" in done.output
