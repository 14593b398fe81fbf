"""Groups and jobs for the executor's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.assembly.buffer import SlotSource
from pipelines.assembly.frame import Calibration, Completion, Group, GroupKey, NoiseCovariance
from pipelines.mrd import ACQUISITION_HEADER
from pipelines.scan_header import Encoding, ScanHeader, Space
from server.execution.executor import Job

SCAN = ScanHeader(
    (Encoding(Space((32, 16, 1), (300, 300, 5)), Space((16, 16, 1), (300, 300, 5))),), protocol_name="T1 ü"
)


class Gate:
    """Holds jobs with the parameter `hold=str(gate)` until it is opened, however slow the machine is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    async def reached(self) -> None:
        """Wait until a job runs."""
        async with asyncio.timeout(60):
            while not (self._folder / "begun").exists():  # noqa: ASYNC110  another process makes it
                await asyncio.sleep(0.002)

    def open(self) -> None:
        """Let it and all others pass."""
        (self._folder / "open").touch()


def make_group(
    slots: SlotSource, seed: int = 0, shape: tuple[int, ...] = (1, 4, 1, 16, 32), *, rich: bool = False
) -> Group:
    """A group whose k-space lies in a slot as ingest fills it: line by line, coils within, so strided."""
    rng = np.random.default_rng(seed)
    frames, coils, z, y, x = shape
    n = int(np.prod(shape))
    slot = slots.take(n * 8 + frames * z * y * 4)
    memory = slot.data[: n * 8].view(np.complex64).reshape(frames, z, y, coils, x)
    kspace = np.moveaxis(memory, 3, 1)
    kspace[...] = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    counts = slot.data[n * 8 :].view(np.float32).reshape(frames, z, y)
    counts[...] = rng.integers(0, 3, counts.shape)
    headers = np.zeros(frames, ACQUISITION_HEADER)
    headers["scan_counter"] = seed
    group = Group(
        key=GroupKey(0, seed, 0, 0, 0, 0),
        kspace=kspace,
        counts=counts,
        calibration_lines=rng.random((z, y)) < 0.5,
        readout_extent=(0, x),
        headers=headers,
        scan=SCAN,
        completion=Completion.FLAG,
        slots=(slot,),
        notes={"note": "seen"},
    )
    if not rich:
        return group
    extra = slots.take(coils * z * y * x * 8)
    lines = extra.data.view(np.complex64).reshape(coils, z, y, x)
    lines[...] = rng.standard_normal(lines.shape)
    calibration = Calibration(lines[..., ::-1], np.ones((z, y), np.float32))
    noise = NoiseCovariance.of(rng.standard_normal((5, coils, 1000)).astype(np.complex64), 5.0)
    return replace(group, calibration=calibration, noise=noise, slots=(slot, extra))


def make_job(
    group: Group, *, name: str = "fake", provenance: Mapping[str, str] | None = None, **parameters: Any
) -> Job:
    """A job for the fake pipeline; parameters are its actions."""
    return Job("session-1", name, parameters, group, provenance or {})
