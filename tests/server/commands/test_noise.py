"""`echotrain noise`: what is kept can be listed, and taken out for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.assembly.frame import NoiseCovariance
from pipelines.scan_relations import CoilLabel
from server.noise_file import StoredNoise
from server.noise_store import NoiseStore


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    store = NoiseStore(tmp_path / "noise")
    for number in range(2):
        samples = np.random.default_rng(number).standard_normal((2, 3 + number, 64)) + 0j
        labels = tuple(CoilLabel(n, f"Head:H{n}") for n in range(3 + number))
        store.keep(f"CANARY_{number}", StoredNoise(NoiseCovariance.of(samples, 7.5), labels, 0.0))
    return tmp_path / "noise"


def test_the_list_says_what_there_is_and_not_of_whom(run: Any, directory: Path) -> None:
    done = run("noise", "list", "--directory", directory)
    assert done.status == 0
    assert "7.5 us" in done.output
    assert sum("128" in line for line in done.lines) == 2
    assert "CANARY" not in done.output


def test_a_damaged_file_is_listed_as_such(run: Any, directory: Path) -> None:
    next(directory.glob("*.npz")).write_bytes(b"broken")
    done = run("noise", "list", "--directory", directory)
    assert done.status == 0
    assert "damaged" in done.output
    assert sum("128" in line for line in done.lines) == 1


def test_an_export_is_what_numpy_says_of_the_samples(run: Any, directory: Path, tmp_path: Path) -> None:
    path = next(path for path in directory.glob("*.npz") if len(np.load(path)["sums"]) == 4)
    done = run("noise", "export", path.stem[:12], "--directory", directory, "--output", tmp_path / "out.npz")
    assert done.status == 0
    samples = np.moveaxis(np.random.default_rng(1).standard_normal((2, 4, 64)), 1, 0).reshape(4, -1)
    with np.load(tmp_path / "out.npz") as exported:
        np.testing.assert_allclose(exported["covariance"], samples @ samples.T / 127, rtol=1e-12)
        assert exported["coil_names"].tolist() == ["Head:H0", "Head:H1", "Head:H2", "Head:H3"]


def test_the_directory_comes_from_the_settings(run: Any, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOTRAIN_NOISE__DIRECTORY", str(directory))
    assert "7.5 us" in run("noise", "list").output


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("list", "--directory", "/nowhere/at/all"), 1),
        (("export", "zz", "--directory", "{directory}", "--output", "x.npz"), 1),
        (("export", "", "--directory", "{directory}", "--output", "x.npz"), 2),
        (("export", "a"), 2),
        (("list",), 2),
        (("remove",), 2),
    ],
)
def test_what_cannot_be_done_ends_with_its_status(
    run: Any, directory: Path, arguments: tuple[str, ...], status: int
) -> None:
    done = run("noise", *(argument.format(directory=directory) for argument in arguments))
    assert done.status == status
    assert "Traceback" not in done.errors
