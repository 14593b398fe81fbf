"""A small model with its card, for tests of whatever opens, lists or serves models."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.card import Card, CardDraft
from models.energy import make_energy
from models.store import save_model
from models.unrolled import make_unrolled

ARCHITECTURE = "line"
FACTORY = "torch.nn:Linear"
"""What the architecture stands for; put into `models.architectures.ARCHITECTURES` by whoever uses it."""

VALUES: dict[str, object] = {
    "name": "tiny-line",
    "version": "1.0.0",
    "summary": "A line through the origin, for tests.",
    "architecture": ARCHITECTURE,
    "configuration": {"in_features": 3, "out_features": 2},
    "licence": "MIT",
    "data": [{"name": "Nothing", "licence": "CC0-1.0", "source": "https://example.org"}],
    "training": {"command": "none", "seed": 0, "updates": 0, "device": "cpu", "duration_s": 0.5},
    "limits": ["Not for images."],
}


def make_draft(**changes: object) -> CardDraft:
    """A card without its digest, fields as given."""
    return CardDraft.model_validate({**VALUES, **changes})


def make_tensors() -> dict[str, Tensor]:
    """Weights of `torch.nn.Linear(3, 2)`."""
    generator = torch.Generator().manual_seed(3)
    return {"weight": torch.randn(2, 3, generator=generator), "bias": torch.randn(2, generator=generator)}


def save_tiny(directory: Path, **changes: object) -> Card:
    """Save the model into a directory of models; its architecture has to be known."""
    return save_model(directory, make_draft(**changes), make_tensors())


ENERGY_CONFIGURATION = {"stages": 1, "features": 8, "growth": 1.0, "blocks": 1}


def save_tiny_energy(directory: Path, seed: int = 5, **changes: object) -> Card:
    """Save an energy of images that nobody trained, for pipelines that need one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = make_energy(**ENERGY_CONFIGURATION).state_dict()
    draft = make_draft(name="tiny-energy", architecture="energy", configuration=ENERGY_CONFIGURATION, **changes)
    return save_model(directory, draft, tensors)


UNROLLED_CONFIGURATION = {"cascades": 2, "stages": 2, "features": 8, "memory": 4, "head": 8}


def save_tiny_unrolled(directory: Path, seed: int = 5, **changes: object) -> Card:
    """Save an unrolled network that nobody trained: it corrects nothing, so it solves least squares."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = make_unrolled(**UNROLLED_CONFIGURATION).state_dict()
    values = {"name": "tiny-unrolled", "architecture": "unrolled", "configuration": UNROLLED_CONFIGURATION}
    return save_model(directory, make_draft(**{**values, **changes}), tensors)
