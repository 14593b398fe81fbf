"""A method that cannot reconstruct a scan, in a real server: another one makes the images, marked as degraded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.image_file import read_images


@pytest.mark.timeout(240)
def test_frames_that_cine_refuses_come_from_sense(start_server: Callable[..., Any], tmp_path: Path) -> None:
    server = start_server()
    try:
        server.wait_until_ready()
        # Frames that all leave out the same lines: nothing tells their aliases from the heart.
        command = [sys.executable, "-m", "server.cli", "simulate", "--anatomy", "heart", "--matrix", "32",
                   "--coils", "4", "--acceleration", "2", "--calibration", "8", "--slices", "1",
                   "--host", "127.0.0.1", "--port", str(server.port), "--pipeline", "cine_ls_dip",
                   "--images", str(tmp_path / "cine.h5"), "--png", str(tmp_path / "cine.png")]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert "cine_ls_dip failed (reconstruction_failed: all frames leave out the same lines" in done.stderr
        metrics, log = server.get("/metrics"), server.log()
    finally:
        assert server.stop() == 0
    series = read_images(tmp_path / "cine.h5")
    assert list(series) == ["image_40001", "image_40002"]
    for image in series["image_40001"]:
        assert image.meta["ReconPipeline"] == ["sense"]
        assert image.meta["ReconInsteadOf"] == ["cine_ls_dip"]
        assert image.meta["ReconDegraded"] == ["true"]
        assert image.meta["ImageComments"][0].startswith("DEGRADED: made by sense, because cine_ls_dip failed")
    assert 'echotrain_fallback_total{pipeline="cine_ls_dip",reason="reconstruction_failed"} 1.0' in metrics
    assert '"outcome": "degraded"' in log
