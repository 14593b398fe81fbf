"""A small network with its card, in a directory of models of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.architectures import ARCHITECTURES
from models.card import Card, CardDraft
from models.catalogue import use_directory
from models.store import save_model

VALUES: dict[str, object] = {
    "name": "tiny-line",
    "version": "1.0.0",
    "summary": "A line through the origin, for tests.",
    "architecture": "line",
    "configuration": {"in_features": 3, "out_features": 2},
    "licence": "MIT",
    "data": [{"name": "Nothing", "licence": "CC0-1.0", "source": "https://example.org"}],
    "training": {"command": "none", "seed": 0, "updates": 0, "device": "cpu", "duration_s": 0.5},
    "limits": ["Not for images."],
}


@pytest.fixture
def make_draft() -> Callable[..., CardDraft]:
    """A card without its digest, fields as given."""
    return lambda **changes: CardDraft.model_validate({**VALUES, **changes})


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Weights of `torch.nn.Linear(3, 2)`."""
    generator = torch.Generator().manual_seed(3)
    return {"weight": torch.randn(2, 3, generator=generator), "bias": torch.randn(2, generator=generator)}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory of models that is in use."""
    monkeypatch.setitem(ARCHITECTURES, "line", "torch.nn:Linear")
    path = tmp_path / "models"
    path.mkdir()
    use_directory(path)
    yield path
    use_directory(None)


@pytest.fixture
def saved(directory: Path, make_draft: Callable[..., CardDraft], tensors: dict[str, Tensor]) -> Card:
    """A saved model."""
    return save_model(directory, make_draft(), tensors)
