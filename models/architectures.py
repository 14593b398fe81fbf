"""Names of networks that a card may ask for. A name selects one of these and is never imported itself.

Installed distributions may add their own through the entry-point group `echotrain.architectures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

import torch
from torch import Tensor, nn

from models.errors import CardError, WeightsError

ENTRY_POINT_GROUP: Final = "echotrain.architectures"

ARCHITECTURES: Final[dict[str, str]] = {
    "energy": "models.energy:make_energy",
    "unrolled": "models.unrolled:make_unrolled",
}
"""`module:attribute` of a callable that takes the configuration as keyword arguments and gives the network, by name."""

_MOST_NAMED: Final = 3


@cache
def _installed() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}


def make_network(architecture: str, configuration: Mapping[str, Any]) -> nn.Module:
    """A network with this configuration on the CPU, its weights not loaded.

    Leaves the global random numbers as they were: a constructor draws initial weights.

    Raises:
        CardError: no such architecture, or it does not take this configuration.
    """
    known = _installed() | ARCHITECTURES  # an installed one cannot replace one of ours
    where = known.get(architecture)
    if where is None:
        names = ", ".join(sorted(known)) or "none"
        raise CardError(f"its architecture {architecture} is unknown; known here: {names}")
    module, _, attribute = where.partition(":")
    make = getattr(import_module(module), attribute)
    try:
        with torch.random.fork_rng(devices=[]):
            network = make(**configuration)
    except (TypeError, ValueError) as error:
        raise CardError(f"its architecture {architecture} does not take its configuration: {error}") from error
    if not isinstance(network, nn.Module):
        raise CardError(f"its architecture {architecture} gives a {type(network).__name__}, not a network")
    return network


def check_tensors(title: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Compare tensors with those of a network, and look for values that are not finite.

    Raises:
        WeightsError: names, types or shapes differ, or a value is not finite; the message says which and how.
    """
    expected: dict[str, Tensor] = network.state_dict()
    problems: list[str] = []
    missing, further = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        problems.append(f"tensors are missing: {_some(missing)}")
    if further:
        problems.append(f"the network has no tensors {_some(further)}")
    for name in sorted(expected.keys() & tensors.keys()):
        want, got = _kind(expected[name]), _kind(tensors[name])
        if want != got:
            problems.append(f"{name} is {got}, expected {want}")
        elif not torch.isfinite(tensors[name]).all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        rest = len(problems) - _MOST_NAMED
        shown = "; ".join(problems[:_MOST_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
        raise WeightsError(f"model {title}: {shown}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _some(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
