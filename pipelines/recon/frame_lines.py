"""Lines of frames: which were measured, whether frames were measured apart, and which to hold out.

A line is a phase-encoding line of Cartesian frames, a readout of others. What a reconstruction makes of some lines can
be judged by the others: their noise is independent.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from pipelines.errors import ReconstructionError
from pipelines.operators.nonuniform import distinct_frames
from pipelines.recon.reconstruction import Prepared

MOST_CENTRAL = 12
"""Lines around the centre of k-space that are never held out where all frames have them: maps come from them."""


def measured_lines(prepared: Prepared) -> Bool[Tensor, "frames z y"]:
    """Which lines hold samples; of non-Cartesian frames y counts readouts."""
    if prepared.trajectory is not None:
        return prepared.trajectory.measured.any(-1)[:, None]
    return prepared.counts > 0


def with_lines(prepared: Prepared, kept: Bool[Tensor, "frames z y"]) -> Prepared:
    """The same frames without the other lines."""
    kspace = prepared.kspace * kept[:, None, :, :, None]
    if prepared.trajectory is None:
        return replace(prepared, kspace=kspace, counts=prepared.counts * kept)
    measured = prepared.trajectory.measured & kept[:, 0, :, None]
    return replace(prepared, kspace=kspace, trajectory=replace(prepared.trajectory, measured=measured))


def share_one_pattern(prepared: Prepared) -> bool:
    """Whether frames are undersampled all in the same way: then nothing tells their aliases from what is in them."""
    if prepared.trajectory is not None:
        return len(distinct_frames(prepared.trajectory.positions, prepared.trajectory.measured)[1]) == 1
    measured = measured_lines(prepared)
    everywhere = measured.all(0)
    return bool((measured.any(0) == everywhere).all()) and not bool(everywhere.all())


def hold_out(prepared: Prepared, share: float, sets: int, seed: int) -> list[Bool[Tensor, "frames z y"]]:
    """Random lines of each frame in sets that have none in common; in no set the centre that all frames have.

    Args:
        prepared: frames.
        share: of the lines of a frame in each set; fewer where a frame has not so many.
        sets: how many.
        seed: of the choice.

    Raises:
        ReconstructionError: not a line for each set.
    """
    measured = measured_lines(prepared)
    free = measured & ~_central(measured.all(0)) if prepared.trajectory is None else measured
    generator = torch.Generator("cpu").manual_seed(seed)
    held = torch.zeros((sets, *measured.shape), dtype=torch.bool)
    for frame, (its, all_of_it) in enumerate(zip(free.cpu(), measured.cpu(), strict=True)):
        places = torch.nonzero(its.flatten())[:, 0]
        places = places[torch.randperm(len(places), generator=generator)]
        size = max(1, round(share * int(all_of_it.sum())))
        # Which set comes first changes with the frame, for frames that have not a line for each.
        for number, place in enumerate(places[: sets * size].tolist()):
            held[(number + frame) % sets, frame].view(-1)[place] = True
    if not bool(held.flatten(1).any(1).all()):
        raise ReconstructionError(
            f"{int(free.sum())} lines of k-space outside of the centre, too few to hold some out and judge by them; "
            "use sense"
        )
    return [part.to(measured.device) for part in held]


def _central(everywhere: Bool[Tensor, "z y"]) -> Bool[Tensor, "z y"]:
    """The block around the centre within what all frames have, at most so many lines along either axis."""
    block = torch.zeros_like(everywhere)
    slices: list[slice] = []
    for along in (everywhere.any(1), everywhere.any(0)):
        n = along.shape[0]
        first = last = n // 2
        while first > 0 and bool(along[first - 1]) and n // 2 - first < MOST_CENTRAL // 2:
            first -= 1
        while last < n and bool(along[last]) and last - n // 2 < MOST_CENTRAL - MOST_CENTRAL // 2:
            last += 1
        slices.append(slice(first, last))
    block[slices[0], slices[1]] = True
    return block & everywhere
