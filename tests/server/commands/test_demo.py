"""The demonstration with a real server process: everything it promises is there."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import matplotlib.image
import numpy as np
import pytest

from server.local_server import StartError, local_server


@pytest.mark.timeout(180)
def test_demo_leaves_pictures_and_images_with_uncertainty(run: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run("demo", "--output", tmp_path / "out", "--slices", 1)
    assert outcome.status == 0, outcome.errors
    for name, slices in (("brain_sense", 1), ("brain_zero_filled", 1), ("knee_zero_filled", 1)):
        assert name in outcome.output
        picture = matplotlib.image.imread(tmp_path / "out" / f"{name}.png")
        assert float(picture[..., :3].std()) > 0.05
        with ismrmrd.Dataset(tmp_path / "out" / f"{name}.h5", mode="r") as dataset:
            for series in ("image_1", "image_2"):
                assert dataset.number_of_images(series) == slices
                image = dataset.read_image(series, 0)
                assert np.isfinite(image.data).all()
                assert image.data.max() > 0
            assert "ReconUncertaintyKind" in dataset.read_image("image_2", 0).meta
        assert len(list((tmp_path / "out").glob(f"{name}_image_*.nii.gz"))) == 2
    assert (tmp_path / "out" / "brain_truth.h5").exists()


def test_demo_fails_when_the_server_does_not_start(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    outcome = run("demo", "--output", tmp_path / "out", "--slices", 1)
    assert outcome.status == 1
    assert "the server ended with status 1" in outcome.errors


def test_server_that_refuses_its_settings_is_reported_with_its_words(tmp_path: Path) -> None:
    with (
        pytest.raises(StartError, match="unknown pipeline 'no_such_pipeline'"),
        local_server(tmp_path / "log", ["--pipeline", "no_such_pipeline"]),
    ):
        pass


def test_data_come_with_their_licences() -> None:
    data = files("pipelines") / "data"
    names = {entry.name for entry in data.iterdir()}
    assert {"brain_slices.h5", "knee.h5", "LICENSE-brain.txt", "LICENSE-knee.txt", "README.md"} <= names
    assert sum(len((data / name).read_bytes()) for name in names if name.endswith(".h5")) < 3_000_000
    with h5py.File(str(data / "brain_slices.h5")) as file:
        assert file["magnitude"].shape == (5, 240, 192)
