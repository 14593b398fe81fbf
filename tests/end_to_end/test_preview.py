"""A cine through a real server with a preview: quick frames at once, then the frames that were asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.image_file import read_images


@pytest.mark.timeout(240)
def test_a_cine_comes_twice_first_quickly(start_server: Callable[..., Any], tmp_path: Path) -> None:
    server = start_server()
    try:
        server.wait_until_ready()
        command = [sys.executable, "-m", "server.cli", "simulate", "--anatomy", "heart", "--matrix", "32",
                   "--coils", "4", "--pattern", "random", "--acceleration", "3", "--calibration", "8", "--slices", "1",
                   "--host", "127.0.0.1", "--port", str(server.port), "--pipeline", "cine_ls_dip",
                   "--parameter", "steps=10", "--parameter", "preview=true",
                   "--images", str(tmp_path / "cine.h5"), "--png", str(tmp_path / "cine.png")]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        metrics = server.get("/metrics")
    finally:
        assert server.stop() == 0
    series = read_images(tmp_path / "cine.h5")
    assert list(series) == ["image_1", "image_2", "image_30001", "image_30002"]
    final, preview = series["image_1"], series["image_30001"]
    assert len(final) == len(series["image_2"]) == len(preview) == len(series["image_30002"]) > 1
    assert {image.meta["ReconMethod"][0] for image in final} == {"networks"}
    assert {image.meta["ReconMethod"][0] for image in preview} == {"low rank plus sparse"}
    assert {image.meta["ReconPreview"][0] for image in preview} == {"true"}
    for quick, asked in zip(preview, final, strict=True):
        assert quick.header["image_index"] == asked.header["image_index"]
        difference = np.linalg.norm(quick.pixels - asked.pixels) / np.linalg.norm(asked.pixels)
        assert 0.0 < difference < 0.3
    assert f'kind="preview",pipeline="cine_ls_dip"}} {2.0 * len(final)}' in metrics
    assert (tmp_path / "cine.png").stat().st_size > 10_000
