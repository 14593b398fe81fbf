"""What a conversion could not carry over: each kind as one sentence with its number, none of them with data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from server.logs import printable

MOST_KINDS = 200
_LENGTH = 300


class Losses:
    """Sentences about what was left out or changed, counted.

    Attributes:
        total: how often something was noted.
    """

    def __init__(self) -> None:
        self.total = 0
        self._kinds: Counter[str] = Counter()

    def note(self, sentence: str, count: int = 1) -> None:
        """Count a loss. Names of fields may stand in the sentence, their values may not: they may be a patient's."""
        self.total += count
        sentence = printable(sentence, _LENGTH)
        if sentence not in self._kinds and len(self._kinds) >= MOST_KINDS:
            sentence = "more of other kinds"
        self._kinds[sentence] += count

    def __iter__(self) -> Iterator[str]:
        for sentence, count in self._kinds.items():
            yield sentence if count == 1 else f"{sentence} ({count} times)"
