"""The rule by which subjects are kept apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.training.held_out import HELD_OUT_SHARE, held_out


@given(st.sets(st.text(max_size=4), max_size=60), st.randoms())
def test_the_order_and_number_of_their_slices_do_not_matter(subjects: set[str], random: object) -> None:
    listed = [*subjects, *subjects]
    random.shuffle(listed)  # type: ignore[attr-defined]
    assert held_out(listed) == held_out(subjects) <= subjects


@pytest.mark.parametrize(("n_subjects", "n_held_out"), [(0, 0), (2, 0), (3, 1), (9, 1), (10, 1), (19, 1), (120, 12)])
def test_a_tenth_is_held_out_and_of_a_few_one(n_subjects: int, n_held_out: int) -> None:
    subjects = [f"{number:03}" for number in range(n_subjects)]
    assert len(held_out(subjects)) == n_held_out
    if n_subjects >= HELD_OUT_SHARE:
        assert subjects[HELD_OUT_SHARE - 1] in held_out(subjects)
    elif n_held_out:
        assert held_out(subjects) == {subjects[-1]}
