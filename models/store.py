"""Weights on disk and back: safetensors with a card, verified before anything is made of them. No pickle.

    open_model("energy-brain")            the highest version
    open_model("energy-brain@1.2.0")      this version

What is verified, in this order: name among those found, card, size, SHA-256, then the tensors against the architecture
and its configuration. Where models lie, and which name means which file, is `models.catalogue`'s.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from models.architectures import check_tensors, make_network
from models.card import Card, CardDraft
from models.catalogue import (
    MOST_WEIGHTS_BYTES,
    Entry,
    card_path,
    check_weights,
    entries,
    find,
    read_card,
    strays,
    weights_path,
)
from models.errors import CardError, ModelError, WeightsError

METADATA: Final = "echotrain"
"""Name of the only metadata of our files; one, because safetensors writes several in any order."""

_opened: dict[Entry, StoredModel] = {}


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A verified model.

    Attributes:
        card: what is known about it.
        tensors: its weights by name, on the CPU; shared by all who open the model, so never change them.
    """

    card: Card
    tensors: dict[str, Tensor]

    def details(self) -> dict[str, str]:
        """Attributes for the meta of images made with it; a reconstruction puts them into `Reconstructed.details`."""
        return {
            "ReconModel": self.card.name,
            "ReconModelVersion": self.card.version,
            "ReconModelDigest": self.card.sha256,
        }

    def build(self) -> nn.Module:
        """A network of one's own with these weights, on the CPU, ready for inference."""
        with torch.inference_mode(mode=False):  # a network made in it could never give a gradient
            network = _make_network(self.card)
            network.load_state_dict(self.tensors)
        return network.eval().requires_grad_(requires_grad=False)


def open_model(name: str) -> StoredModel:
    """The model of a name or of `name@version`, verified; kept for the life of the process.

    Raises:
        UnknownModelError: there is no such model.
        CardError: it has no card, or one that cannot be used.
        WeightsError: the weights are not those of the card, or not those of the architecture.
        ModelError: the directory of models cannot be used.
    """
    entry = find(name)
    found = _opened.get(entry)
    if found is None:
        found = _opened[entry] = read_model(entry)
    return found


def read_model(entry: Entry) -> StoredModel:
    """A model from its files, verified; errors as in `open_model`."""
    card = read_card(entry)
    before = _identity(entry.weights)
    check_weights(entry, card)
    tensors, metadata = _read(entry)
    if _identity(entry.weights) != before:
        # Somebody replaced the file between its digest and its tensors.
        raise WeightsError(f"model {entry.title}: the weights changed while they were read")
    if metadata != _metadata(card):
        raise WeightsError(f"model {entry.title}: the weights were saved with another configuration than the card's")
    check_tensors(entry.title, _make_network(card), tensors)
    return StoredModel(card, tensors)


def save_model(directory: Path, draft: CardDraft, tensors: Mapping[str, Tensor]) -> Card:
    """Write weights and then their card; a model with the same name and version is replaced.

    Whoever reads meanwhile sees the old model, the new one, or an error about the digest, never a mixture. The same
    tensors and card give the same bytes.

    Args:
        directory: directory of models; made if it does not exist.
        draft: the card; digest and size are added. A whole card is taken too, and its digest replaced.
        tensors: `state_dict` of the network.

    Raises:
        CardError: the architecture is unknown or does not take the configuration.
        WeightsError: tensors do not fit the architecture, are not finite, or too large.
        ModelError: the files cannot be written.
    """
    own = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    check_tensors(draft.title, _make_network(draft), own)
    data = save(own, {METADATA: _metadata(draft)})
    if len(data) > MOST_WEIGHTS_BYTES:
        raise WeightsError(f"model {draft.title}: the weights have {len(data)} bytes; at most {MOST_WEIGHTS_BYTES}")
    known = draft.model_dump(exclude={"sha256", "bytes"})
    card = Card.model_validate({**known, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
    _write(weights_path(directory, card.title), data, card.title)
    _write(card_path(directory, card.title), card.json_text().encode(), card.title)
    _forget(card.title)
    return card


def save_card(directory: Path, card: Card) -> None:
    """Write a card anew beside its weights, for instance with a calibration.

    Raises:
        WeightsError: the weights there are not those of the card.
        ModelError: the file cannot be written.
    """
    entry = Entry(card.name, card.version, directory)
    check_weights(entry, card)
    _write(card_path(directory, card.title), card.json_text().encode(), card.title)
    _forget(card.title)


def verify() -> dict[str, str]:
    """Everything that is wrong with models here: a sentence for each, by `name@version` or name of a file.

    Raises:
        ModelError: the directory of models cannot be used.
    """
    problems = {path.name: "this file belongs to no model: NAME@MAJOR.MINOR.PATCH is expected" for path in strays()}
    for entry in entries():
        try:
            find(entry.title)
            read_model(entry)
        except ModelError as error:
            problems[entry.title] = str(error)
    return problems


def _forget(title: str) -> None:
    """Open it anew next time, by whatever path its directory is known."""
    for entry in [entry for entry in _opened if entry.title == title]:
        del _opened[entry]


def _make_network(card: CardDraft) -> nn.Module:
    try:
        return make_network(card.architecture, card.configuration)
    except CardError as error:
        raise CardError(f"model {card.title}: {error}") from error


def _read(entry: Entry) -> tuple[dict[str, Tensor], str | None]:
    try:
        with (
            safe_open(str(entry.weights), framework="pt", device="cpu") as file,
            torch.inference_mode(mode=False),  # tensors are kept, and used by others for gradients too
        ):
            # Copies: what safetensors gives are views of the file, which would change when it does.
            tensors = {str(name): file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"model {entry.title}: the weights are no safetensors ({type(error).__name__})") from error
    return tensors, metadata.get(METADATA)


def _metadata(card: CardDraft) -> str:
    """What the file of weights says about itself, so that it is not taken for another network's."""
    return json.dumps({"architecture": card.architecture, "configuration": card.configuration}, sort_keys=True)


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None  # what is wrong is said where the file is checked
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _write(path: Path, data: bytes, title: str) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ModelError(f"model {title} cannot be written: {error.strerror or type(error).__name__}") from error
