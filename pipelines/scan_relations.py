"""What a scan header says about other scans: its own id, the scans it depends on, and the coils it was measured with.

Noise is measured once for many scans: those name the noise scan as a dependency, and coil labels tell whether their
channels are the same ones. All of this is optional and read leniently: what is malformed counts as absent. Ids come
from hospitals' numbering of patients, so they are compared and hashed, never logged, and never a path.
Source: ISMRMRD `ismrmrd.xsd`, measurementInformation and acquisitionSystemInformation.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

MAX_ID: Final = 256
"""Characters of an id that is kept as it is."""

MAX_DEPENDENCIES: Final = 64
MAX_COIL_LABELS: Final = 1024
MAX_COIL_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class Dependency:
    """A scan that this one relies on.

    Attributes:
        kind: `noise`, `senmap`, ...: dependencyType in lower case, of whatever the header says.
        measurement_id: of that scan, as `opaque_id` gives it; never in logs.
    """

    kind: str
    measurement_id: str


@dataclass(frozen=True, slots=True)
class CoilLabel:
    """What one channel is connected to.

    Attributes:
        number: coilNumber; -1 where the header has no such number.
        name: coilName, bounded, printable.
    """

    number: int
    name: str


class XmlElement(Protocol):
    """What is needed of an element of the header."""

    @property
    def text(self) -> str:
        """Its text."""
        ...

    def all(self, name: str) -> Sequence[XmlElement]:
        """Its children of that name."""
        ...


def opaque_id(text: str) -> str:
    """An id to compare with others: itself, or the digest of one that is long or has control characters.

    Cutting a long one would make two scans one.
    """
    text = text.strip(" \t\r\n\0")
    if len(text) <= MAX_ID and not any(unicodedata.category(letter).startswith("C") for letter in text):
        return text
    return "sha256:" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def dependencies(measurement: XmlElement) -> tuple[Dependency, ...]:
    """The dependencies of measurementInformation, in its order; those without type or id are left out."""
    found = [
        Dependency(_printable(_text(element, "dependencyType")).casefold(), opaque_id(_text(element, "measurementID")))
        for element in measurement.all("measurementDependency")[:MAX_DEPENDENCIES]
    ]
    return tuple(each for each in found if each.kind and each.measurement_id)


def coil_labels(system: XmlElement) -> tuple[CoilLabel, ...]:
    """The labels of acquisitionSystemInformation, in its order, which is that of the channels (as in Gadgetron)."""
    return tuple(
        CoilLabel(_number(_text(element, "coilNumber")), _printable(_text(element, "coilName")))
        for element in system.all("coilLabel")[:MAX_COIL_LABELS]
    )


def coil_order(then: Sequence[CoilLabel], now: Sequence[CoilLabel]) -> list[int] | None:
    """Where each channel was in an earlier scan.

    Names tell coils apart where they are unique; where they are not, names with numbers do.

    Returns:
        For each channel of `now` its place in `then`; None when the labels do not say, because the coils are different
        ones or several have the same label.
    """
    if tuple(then) == tuple(now):
        return list(range(len(now)))
    for keys in ([[each.name for each in side] for side in (then, now)], [list(then), list(now)]):
        before, after = keys
        places = {key: place for place, key in enumerate(before)}
        if len(places) == len(before) == len(after) and places.keys() == set(after):
            return [places[key] for key in after]
    return None


def _text(element: XmlElement, name: str) -> str:
    found = element.all(name)
    return found[0].text if found else ""


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1


def _printable(text: str) -> str:
    return "".join(letter for letter in text[: 16 * MAX_COIL_NAME] if letter.isprintable())[:MAX_COIL_NAME]
