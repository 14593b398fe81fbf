"""Changes valid inputs into nearly valid ones, out of one seed. Where atheris is not, this is all there is."""

from __future__ import annotations

import random
from typing import Final

from tests.fuzz.corpus import NUMBERS, WORDS, messages, seeds
from tests.fuzz.scans import samples

MOST_BYTES: Final = 1 << 16
_WIRE_HEAD: Final = 3


class Mutator:
    """Inputs of one target without end.

    Args:
        target: its name.
        rng: seeded.
    """

    def __init__(self, target: str, rng: random.Random) -> None:
        self._rng = rng
        self._is_wire = target == "wire"
        self._seeds = seeds(target)
        self._words = NUMBERS + messages() if target in {"wire", "intake"} else WORDS
        self._scans = samples() if target == "intake" else ()

    def next(self) -> bytes:
        """One input."""
        rng = self._rng
        data = bytearray(rng.choice(self._seeds))
        if self._is_wire and rng.random() < 0.3:
            data = bytearray(rng.randbytes(_WIRE_HEAD)) + b"".join(rng.choices(messages(), k=rng.randint(1, 6)))
        if self._scans:
            data = self._scan()
        for _ in range(min(12, 1 + int(rng.expovariate(0.6)))):
            self._change(data)
        return bytes(data[:MOST_BYTES])

    def _scan(self) -> bytearray:
        """Readouts of a scan, some of them missing, twice or in another order."""
        rng = self._rng
        number = rng.randrange(len(self._scans))
        chosen = list(self._scans[number].messages)
        match rng.randrange(4):
            case 0:
                chosen = rng.choices(chosen, k=rng.randint(1, len(chosen)))
            case 1:
                rng.shuffle(chosen)
            case 2:
                chosen.insert(rng.randrange(len(chosen)), rng.choice(messages()))
            case _:
                pass
        return bytearray([rng.randrange(256), number]) + b"".join(chosen)

    def _change(self, data: bytearray) -> None:
        rng = self._rng
        at = rng.randrange(len(data) + 1)
        match rng.randrange(11):
            case 0 | 1 if data:
                bit = rng.randrange(8 * len(data))
                data[bit // 8] ^= 1 << bit % 8
            case 2:
                word = rng.choice(self._words)
                data[at : at + len(word)] = word
            case 3:
                data[at:at] = rng.choice(self._words)
            case 4:
                del data[at : at + rng.choice((1, 2, 4, 8, 40, 400))]
            case 5:
                data[at:at] = data[at : at + rng.choice((1, 8, 100, 2000))]
            case 6:
                other = rng.choice(self._seeds)
                begin = rng.randrange(len(other))
                data[at : at + rng.randrange(200)] = other[begin : begin + rng.randrange(400)]
            case 7:
                del data[at:]
            case 8:
                data[at : at + 4] = rng.randbytes(rng.randrange(5))
            case 9:
                piece = rng.choice((rng.choice(self._words), bytes(data[at : at + rng.randint(1, 8)])))
                data[at:at] = piece * min(rng.choice((2, 30, 2000)), MOST_BYTES // max(1, len(piece)))
            case _:
                self._lengthen(data, rng.randrange(8))

    def _lengthen(self, data: bytearray, offset: int) -> None:
        """Take a small number for the length of a list, and give it a few entries more or fewer."""
        places = range(offset, len(data) - 8, 8)
        small = [at for at in places if data[at] < 16 and not any(data[at + 1 : at + 8])]
        if not small:
            return
        at, more = self._rng.choice(small), self._rng.choice((-1, 1, 2, 8))
        n = max(0, data[at] + more)
        data[at : at + 8] = n.to_bytes(8, "little")
        if more > 0:
            data[at + 8 : at + 8] = self._rng.choice((1, 0, 2)).to_bytes(8, "little") * more
        else:
            del data[at + 8 : at + 16]
