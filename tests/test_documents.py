"""What the documents promise exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "ACQUISITIONS.md").read_text())


def test_the_table_names_a_test_for_every_feature() -> None:
    rows = [line for line in (ROOT / "ACQUISITIONS.md").read_text().splitlines() if line.startswith("| ")]
    features = [row for row in rows if not row.startswith(("| feature", "| ---"))]
    assert len(features) > 100
    for row in features:
        assert re.search(r"`tests/[\w/]+\.py::\w+` \|$", row), row
    assert len({row.split(" | ")[0] for row in features}) == len(features)


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_test_that_the_table_names_exists(path: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
