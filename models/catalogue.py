"""Which models there are: names found in directories, their cards, and whether the weights are those of the card.

A directory of models holds `cards/NAME@VERSION.json` and `weights/NAME@VERSION.safetensors`. Ours lies in this package;
one of the user's own may be added. What a peer asks for selects one of the names found there; it is never made into a
path. Knows no torch: digests are computed from files, piece by piece.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from models.card import NAME, VERSION, Card, parse_card
from models.errors import CardError, ModelError, UnknownModelError, WeightsError

SHIPPED: Final = Path(__file__).parent
"""Directory of the models that are installed with this program."""

MOST_CARD_BYTES: Final = 1 << 20
MOST_WEIGHTS_BYTES: Final = 1 << 30
"""Larger files are refused before they are read; the largest network here has some 20 MB."""

_SUFFIXES: Final = {"cards": ".json", "weights": ".safetensors"}
_PIECE_BYTES: Final = 1 << 20
_TITLE: Final = re.compile(rf"({NAME})@({VERSION})", re.ASCII)
_WANTED: Final = re.compile(rf"({NAME})(?:@({VERSION}))?", re.ASCII)
_MOST_SHOWN: Final = 64

_own_directory: Path | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One model, known by the names of its files; nothing in them has been read.

    Attributes:
        root: directory of models it lies in.
    """

    name: str
    version: str
    root: Path

    @property
    def title(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def order(self) -> tuple[str, tuple[int, ...]]:
        """What models are sorted by: name, then version by its numbers."""
        return self.name, tuple(int(number) for number in self.version.split("."))

    @property
    def card(self) -> Path:
        """Its card."""
        return card_path(self.root, self.title)

    @property
    def weights(self) -> Path:
        """Its weights."""
        return weights_path(self.root, self.title)


def card_path(root: Path, title: str) -> Path:
    """Where the card of `name@version` lies."""
    return root / "cards" / f"{title}.json"


def weights_path(root: Path, title: str) -> Path:
    """Where the weights of `name@version` lie."""
    return root / "weights" / f"{title}.safetensors"


def use_directory(directory: Path | None) -> None:
    """Add a directory of the user's own to ours, for this process; None takes it away again."""
    global _own_directory
    _own_directory = directory


def directories() -> tuple[Path, ...]:
    """Where models are looked for.

    Raises:
        ModelError: the user's own directory does not exist; falling back to ours could serve another model.
    """
    if _own_directory is None or _own_directory.resolve() == SHIPPED.resolve():
        return (SHIPPED,)
    if not _own_directory.is_dir():
        raise ModelError("the directory that the setting models.directory names does not exist or cannot be read")
    return (SHIPPED, _own_directory)


def entries() -> tuple[Entry, ...]:
    """All models that have a card, weights, or both, by name and version.

    Raises:
        ModelError: the user's own directory does not exist.
    """
    found = {
        Entry(match[1], match[2], root)
        for root in directories()
        for path in _files(root)
        if path.suffix == _SUFFIXES[path.parent.name] and (match := _TITLE.fullmatch(path.stem))
    }
    return tuple(sorted(found, key=lambda entry: (entry.order, entry.root != SHIPPED)))


def strays() -> tuple[Path, ...]:
    """Files in directories of models that belong to no model, such as misspelt names."""
    known = {path for entry in entries() for path in (entry.card, entry.weights)}
    return tuple(sorted(path for root in directories() for path in _files(root) if path not in known))


def _files(root: Path) -> Iterator[Path]:
    """Files in the folders of a directory of models; hidden ones are being written or belong to the system."""
    for name in _SUFFIXES:
        folder = root / name
        if folder.is_dir():
            yield from (path for path in folder.iterdir() if not path.name.startswith("."))


def find(wanted: str) -> Entry:
    """The model of a name, or of `name@version`; without a version the highest one that has a card.

    Raises:
        UnknownModelError: no model is called so; the message lists those there are.
        ModelError: two models are called so.
    """
    match = _WANTED.fullmatch(wanted)
    name, version = match.groups() if match else (None, None)
    there = entries()
    named = [entry for entry in there if entry.name == name and version in {None, entry.version}]
    # Weights whose card is not there yet are being saved: cards are written last.
    usable = [entry for entry in named if version is not None or entry.card.exists()] or named
    if not usable:
        shown = wanted[:_MOST_SHOWN].encode("unicode_escape").decode("ascii")
        titles = ", ".join(dict.fromkeys(entry.title for entry in there)) or "none"
        raise UnknownModelError(f"there is no model '{shown}'; models here: {titles}")
    best = max(usable, key=lambda entry: entry.order)
    if sum(entry.title == best.title for entry in usable) > 1:
        raise ModelError(f"model {best.title} lies in models.directory and comes with this program too; rename one")
    return best


def read_card(entry: Entry) -> Card:
    """The card of a model.

    Raises:
        CardError: there is none, it cannot be read, or it does not fit the name of its file.
    """
    title = entry.title
    if not entry.card.is_file():
        raise CardError(f"model {title}: it has no card; a model without one is not served")
    try:
        with entry.card.open("rb") as file:
            data = file.read(MOST_CARD_BYTES + 1)
        if len(data) > MOST_CARD_BYTES:
            raise CardError(f"model {title}: the card has more than {MOST_CARD_BYTES} bytes")
        values = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise CardError(f"model {title}: the card cannot be read ({_reason(error)})") from error
    card = parse_card(values, title)
    if card.title != title:
        raise CardError(f"model {title}: the card is that of {card.title}")
    return card


def check_weights(entry: Entry, card: Card) -> None:
    """Compare the file of weights with its card, in memory of one piece.

    Raises:
        WeightsError: no file, one that is too large, or one of another size or digest.
    """
    title = entry.title
    try:
        path = entry.weights.resolve()
        if not path.is_file():
            raise WeightsError(f"model {title}: it has a card but no weights")
        if not path.is_relative_to(entry.root.resolve()):
            raise WeightsError(f"model {title}: the weights lie outside the directory of models")
        n_bytes = path.stat().st_size
        if n_bytes > MOST_WEIGHTS_BYTES:
            raise WeightsError(f"model {title}: the weights have {n_bytes} bytes, at most {MOST_WEIGHTS_BYTES} may be")
        if n_bytes != card.bytes:
            raise WeightsError(f"model {title}: the weights have {n_bytes} bytes, the card says {card.bytes}")
        found = digest(path)
    except OSError as error:
        raise WeightsError(f"model {title}: the weights cannot be read ({_reason(error)})") from error
    if found != card.sha256:
        raise WeightsError(f"model {title}: the weights have SHA-256 {found}, the card says {card.sha256}")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            sha.update(piece)
    return sha.hexdigest()


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without its path."""
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
