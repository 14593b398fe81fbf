"""Free ranges against a plain list of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.execution.extents import Extents


@settings(max_examples=150)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12), st.integers(0, 20)), max_size=60))
def test_ranges_agree_with_a_list_of_bytes(steps: list[tuple[bool, int, int]]) -> None:
    extents, used, taken = Extents(40), [False] * 40, list[tuple[int, int]]()
    for takes, n, which in steps:
        if takes:
            fits = [start for start in range(40 - n + 1) if not any(used[start : start + n])]
            assert extents.take(n) == (fits[0] if fits else None)
            if fits:
                used[fits[0] : fits[0] + n] = [True] * n
                taken.append((fits[0], n))
        elif taken:
            start, n_taken = taken.pop(which % len(taken))
            extents.give(start, n_taken)
            used[start : start + n_taken] = [False] * n_taken
    edges = [i for i in range(41) if (i > 0 and not used[i - 1]) != (i < 40 and not used[i])]
    assert extents.free == list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize(("start", "n"), [(0, 1), (5, 10), (9, 1), (0, 40)])
def test_giving_back_what_is_free_is_an_error(start: int, n: int) -> None:
    extents = Extents(40)
    assert extents.take(40) == 0
    extents.give(0, 10)
    with pytest.raises(ValueError, match="overlaps a free range"):
        extents.give(start, n)
    assert extents.free == [(0, 10)]
