"""Single values of the scan header: the texts that `ismrmrd.xsd` allows <-> the values of MRD version 2.

Reading and writing are inverse to each other on what both versions have. A float is what a 32-bit float holds, as the
schema says, and is written in the fewest digits that give it back.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import mrd
import numpy as np

from server.wire.attributes import xml_text

Remark = Callable[[str], None]
"""Told what about a value was lost: "its time zone"."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A kind of value. Both directions raise ValueError for what is not of this kind.

    Attributes:
        name: what a value is called in a sentence.
        read: from the text of version 1.
        write: to XML text of version 1, escaped.
    """

    name: str
    read: Callable[[str, Remark], Any]
    write: Callable[[Any, Remark], str]


_ZONE: Final = r"(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})?"
_DATE: Final = re.compile(r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})" + _ZONE)
_TIME: Final = re.compile(r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})(\.(?P<part>[0-9]+))?" + _ZONE)
_FLOAT: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_WORDS: Final = {"INF": np.inf, "-INF": -np.inf, "NaN": np.nan}


def _read_text(text: str, _remark: Remark) -> str:
    return text


def _write_text(value: str, remark: Remark) -> str:
    written, n_replaced = xml_text(value)
    if n_replaced:
        remark("characters that XML cannot hold")
    return written


def integer(name: str, minimum: int, maximum: int) -> Leaf:
    """A whole number in a range."""

    def read(text: str, _remark: Remark) -> int:
        if re.fullmatch(r"[+-]?[0-9]{1,20}", text.strip()) is None:
            raise ValueError
        return check(int(text))

    def write(value: Any, _remark: Remark) -> str:
        return str(check(int(value)))

    def check(value: int) -> int:
        if not minimum <= value <= maximum:
            raise ValueError
        return value

    return Leaf(f"{name} from {minimum} to {maximum}", read, write)


def _number(text: str) -> float:
    text = text.strip()
    if text in _WORDS:
        return _WORDS[text]
    if _FLOAT.fullmatch(text) is None:
        raise ValueError
    return float(text)


def _written(value: np.floating[Any]) -> str:
    if np.isfinite(value):
        return str(value)
    return "NaN" if np.isnan(value) else "INF" if value > 0 else "-INF"


def _read_float(text: str, _remark: Remark) -> float:
    value = _number(text)
    with np.errstate(over="ignore"):
        single = np.float32(value)
    if np.isinf(single) and not np.isinf(value):
        raise ValueError
    return float(single)


def _read_double(text: str, _remark: Remark) -> float:
    return _number(text)


def _read_date(text: str, remark: Remark) -> datetime.date:
    match = _DATE.fullmatch(text.strip())
    if match is None:
        raise ValueError
    if match["zone"]:
        remark("its time zone")
    return datetime.date.fromisoformat(match["date"])


def _write_date(value: datetime.date, _remark: Remark) -> str:
    return value.isoformat()


def _read_time(text: str, remark: Remark) -> mrd.Time:
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError
    if match["zone"]:
        remark("its time zone")
    part = match["part"] or ""
    if part[9:].strip("0"):
        remark("fractions below a nanosecond")
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
    return mrd.Time.from_components(hour, minute, second, int(part[:9].ljust(9, "0")))


def _write_time(value: mrd.Time, _remark: Remark) -> str:
    return str(value)


def choice(kind: type[Enum], words: str) -> Leaf:
    """One of some words; the members of version 2 are called the same but for case and underscores."""

    def plain(name: str) -> str:
        return name.replace("_", "").lower()

    members = {plain(member.name): member for member in kind}
    by_word = {word: members[plain(word)] for word in words.split()}
    by_member = {member: word for word, member in by_word.items()}

    def read(text: str, _remark: Remark) -> Enum:
        if text.strip() not in by_word:
            raise ValueError
        return by_word[text.strip()]

    def write(value: Enum, _remark: Remark) -> str:
        if value not in by_member:
            raise ValueError
        return by_member[value]

    return Leaf(f"one of {', '.join(by_word)}", read, write)


TEXT: Final = Leaf("a text", _read_text, _write_text)
SHORT: Final = integer("a whole number", 0, 65_535)
UNSIGNED: Final = integer("a whole number", 0, 2**32 - 1)
UNSIGNED_LONG: Final = integer("a whole number", 0, 2**64 - 1)
LONG: Final = integer("a whole number", -(2**63), 2**63 - 1)
FLOAT: Final = Leaf("a number", _read_float, lambda value, _remark: _written(np.float32(value)))
DOUBLE: Final = Leaf("a number", _read_double, lambda value, _remark: _written(np.float64(value)))
DATE: Final = Leaf("a date", _read_date, _write_date)
TIME: Final = Leaf("a time of day", _read_time, _write_time)
