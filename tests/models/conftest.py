"""A directory of models of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import Tensor

from models.architectures import ARCHITECTURES
from models.card import Card, CardDraft
from models.catalogue import use_directory
from tests import tiny_model


@pytest.fixture
def make_draft() -> Callable[..., CardDraft]:
    """A card without its digest, fields as given."""
    return tiny_model.make_draft


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Weights of `torch.nn.Linear(3, 2)`."""
    return tiny_model.make_tensors()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory of models that is in use."""
    monkeypatch.setitem(ARCHITECTURES, tiny_model.ARCHITECTURE, tiny_model.FACTORY)
    path = tmp_path / "models"
    path.mkdir()
    use_directory(path)
    yield path
    use_directory(None)


@pytest.fixture
def saved(directory: Path) -> Card:
    """A saved model."""
    return tiny_model.save_tiny(directory)
