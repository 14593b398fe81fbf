"""A pipeline that stands in for a real one: what it does is a parameter, so that tests can make it sleep, fail or die.

Workers import it by name (`fake_pipeline:FakePipeline`), which shows that the executor's seam works across processes.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pipelines import errors, progress
from pipelines.assembly.frame import Group
from pipelines.mrd import IMAGE_HEADER, Image


class HomemadeError(errors.ReconstructionError):
    """An error that the front process does not know."""

    code = "homemade"
    advice = "Ask its maker."


@dataclass
class FakeOutput:
    images: tuple[Image, ...]
    stages_s: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    outside_domain: tuple[str, ...] = ()


class FakePipeline:
    kept: list[Any] = []  # noqa: RUF012

    def __init__(self, name: str, parameters: Mapping[str, object], device: str) -> None:
        if name == "unloadable":
            raise RuntimeError("no weights")
        self.name = name
        self.parameters: dict[str, Any] = dict(parameters)
        self.device = device
        self.n_runs = 0

    def __call__(self, group: Group, provenance: Mapping[str, str]) -> FakeOutput:
        self.n_runs += 1
        if self.name == "unsendable":
            return FakeOutput((Image(np.zeros((), IMAGE_HEADER), np.zeros((1, 1, 1, 1), object)),))
        if self.name == "alias":
            return FakeOutput((_image(group.kspace.real[0, :1]),))
        for action, value in self.parameters.items():
            getattr(self, f"do_{action}")(value, group)
        kspace = torch.from_numpy(group.kspace)
        magnitude = torch.fft.ifft2(kspace, norm="ortho").abs().square().sum(1).sqrt()[:1].numpy()
        images = tuple(_image(pixels) for pixels in (magnitude, 0.5 * magnitude))
        meta = {
            "pid": [str(os.getpid())],
            "runs": [str(self.n_runs)],
            "digest": [digest(group)],
            "random": [str(torch.rand(1).item())],
            **{name: [value] for name, value in provenance.items()},
        }
        return FakeOutput(tuple(Image(i.header, i.pixels, meta) for i in images), {"recon": 0.25}, ("a warning",))

    def do_sleep_s(self, seconds: float, _group: Group) -> None:
        time.sleep(seconds)

    def do_hold(self, folder: str, _group: Group) -> None:
        """Say that the job runs, and wait until the test opens the gate (`fake_jobs.Gate`)."""
        (Path(folder) / "begun").touch()
        deadline = time.monotonic() + 60
        while not (Path(folder) / "open").exists():
            if time.monotonic() > deadline:
                raise RuntimeError("the gate stayed closed")
            time.sleep(0.002)

    def do_refuse(self, name: str, _group: Group) -> None:
        known = {kind.__name__: kind for kind in (*vars(errors).values(), HomemadeError) if isinstance(kind, type)}
        raise known[name]("line 97 lies outside 0 to 95")

    def do_break(self, text: str, _group: Group) -> None:
        raise RuntimeError(text)

    def do_die(self, n_times: int, group: Group) -> None:
        """Kill this worker as long as fewer than `n_times` have died; the count is in the file `deaths`."""
        deaths = Path(str(self.parameters["deaths"]))
        n = len(deaths.read_bytes()) if deaths.exists() else 0
        if n < n_times:
            with deaths.open("ab") as file:
                file.write(b"x")
            group.kspace[...] = 0  # what a dying worker leaves behind must not reach the next one
            os.kill(os.getpid(), signal.SIGKILL)

    def do_deaths(self, _path: str, _group: Group) -> None:
        """Only read by `do_die`."""

    def do_keep(self, _value: bool, group: Group) -> None:
        self.kept.append(group.kspace)

    def do_stop_itself(self, _value: bool, _group: Group) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def do_allocate(self, n_bytes: int, _group: Group) -> None:
        torch.ones(n_bytes, dtype=torch.uint8)

    def do_report(self, percents: list[int], _group: Group) -> None:
        """Report so many percent, all of them heard."""
        with mock.patch.multiple(progress, FIRST_S=0.0, INTERVAL_S=0.0):
            for percent in percents:
                progress.report(percent / 100, "waits")

    def do_say(self, anything: Any, _group: Group) -> None:
        """Hand to the listener what is no text."""
        course = progress._course.get()
        assert course is not None
        course.listener(anything)

    def do_touch(self, path: str, _group: Group) -> None:
        Path(path).touch()

    def do_write_digest(self, path: str, group: Group) -> None:
        Path(path).write_text(digest(group))


def _image(pixels: np.ndarray[Any, Any]) -> Image:
    header = np.zeros((), IMAGE_HEADER)
    header["data_type"] = 5
    header["channels"] = pixels.shape[0]
    header["matrix_size"] = pixels.shape[:0:-1]
    return Image(header, pixels)


def digest(group: Group) -> str:
    """Digest of everything in a group that a worker should see as it was."""
    h = hashlib.sha256()
    arrays = [group.kspace, group.counts, group.calibration_lines, group.headers]
    if group.calibration is not None:
        arrays += [group.calibration.kspace, group.calibration.counts]
    if group.noise is not None:
        arrays += [group.noise.sums]
    for array in arrays:
        h.update(str((array.shape, array.dtype)).encode())
        h.update(np.ascontiguousarray(array).tobytes())
    h.update(
        repr((group.key, group.scan, group.readout_extent, group.completion, sorted(group.notes.items()))).encode()
    )
    return h.hexdigest()
