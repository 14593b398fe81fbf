"""Extra series of an installed pipeline through a real server, into every file that `send` and `view` write."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from pipelines.simulate import SimulatedScan
from server.image_file import read_images
from server.scan_file import write_scan

MODULE = '''
from dataclasses import replace

from pydantic import Field

from pipelines.assembly.frame import Grouping
from pipelines.parameters import SenseParameters
from pipelines.registry import PipelineEntry


class ResearchParameters(SenseParameters):
    """Parameters of `research`."""

    extra_series: bool = Field(False, description="Also send coil maps and samples.")


ENTRY = PipelineEntry("research", "Sense with more to see.", ResearchParameters, Grouping.SLICE, "research:Research")


class Research:
    def __init__(self, parameters, device):
        from pipelines.recon.sense import Sense

        self._inner, self._wants_extras = Sense(parameters, device), parameters.extra_series

    def __call__(self, prepared):
        import torch
        from pipelines.recon.reconstruction import ExtraSeries

        result = self._inner(prepared)
        if not self._wants_extras:
            return result
        frames, n_coils = prepared.kspace.shape[:2]
        noise = torch.randn((frames, 2, *result.image.shape[1:]), generator=torch.Generator().manual_seed(1))
        maps = torch.full((frames, n_coils, *result.image.shape[1:]), 0.5j, dtype=torch.complex64)
        samples = result.image.abs()[:, None] + noise * result.deviation[:, None]
        return replace(result, extras=(
            ExtraSeries("coil_maps", maps, "Coil sensitivities"),
            ExtraSeries("posterior_samples", samples, "Samples", role="Image", in_image_units=True),
        ))
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with one pipeline, on the path of the processes that the test starts."""
    site = tmp_path / "site"
    information = site / "research-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "research.py").write_text(MODULE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: research\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[echotrain.pipelines]\nresearch = research:ENTRY\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))


def echotrain(*arguments: object) -> None:
    command = [sys.executable, "-m", "server.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("installed")
def test_extra_series_reach_files_and_pictures_when_asked_for(
    start_server: Callable[..., Any], scan: SimulatedScan, tmp_path: Path
) -> None:
    write_scan(tmp_path / "scan.h5", scan.header, scan.batches)
    server = start_server("emission.pixels=uint16")
    try:
        server.wait_until_ready()
        send = ["send", tmp_path / "scan.h5", "--port", server.port, "--pipeline", "research"]
        echotrain(*send, "--output", tmp_path / "plain.h5")
        echotrain(*send, "--parameter", "extra_series=true", "--output", tmp_path / "more.h5", "--nifti",
                  "--png", tmp_path / "more.png")  # fmt: skip
        assert 'kind="extra"' in server.get("/metrics")
    finally:
        assert server.stop() == 0
    echotrain("view", tmp_path / "more.h5", "--output", tmp_path / "view.png")
    echotrain("view", tmp_path / "more.h5", "--reference", tmp_path / "more.h5", "--output", tmp_path / "same.png")
    echotrain("convert", tmp_path / "more.h5", tmp_path / "more.mrd2")

    plain, more = read_images(tmp_path / "plain.h5"), read_images(tmp_path / "more.h5")
    assert list(plain) == ["image_1", "image_2"]
    assert {name: len(images) for name, images in more.items()} == {
        "image_1": 4, "image_2": 4, "image_5001": 16, "image_6001": 8,
    }  # fmt: skip
    for before, after in zip(plain["image_1"], more["image_1"], strict=True):
        np.testing.assert_array_equal(before.pixels, after.pixels)
        assert after.pixels.dtype == np.uint16
    for images, dtype in ((more["image_5001"], np.complex64), (more["image_6001"], np.float32)):
        assert {image.pixels.dtype for image in images} == {np.dtype(dtype)}
        assert sorted(int(image.header["image_index"]) for image in images) == list(range(1, len(images) + 1))
    np.testing.assert_array_equal(more["image_5001"][7].pixels, np.full((1, 1, 64, 64), 0.5j, np.complex64))
    for name in ("view", "same", "more"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    # x, y, slices, then repetitions with their members
    assert nibabel.load(tmp_path / "more_image_5001.nii.gz").shape == (64, 64, 2, 8)
    assert nibabel.load(tmp_path / "more_image_6001.nii.gz").shape == (64, 64, 2, 4)
