"""Calls Debian's `bart` as an oracle: arrays go through cfl files in a folder of their own.

Arrays are ours, `(coils, z, y, x)`; BART's first dimensions are x, y, z, coils. Both put the centre of k-space at n//2
and use an orthonormal transform, so that nothing else has to be converted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def is_installed() -> bool:
    """Whether `bart` is on the PATH."""
    return shutil.which("bart") is not None


class Bart:
    """BART commands in one folder; arrays are named files there."""

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self._folder = folder
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def run(self, *arguments: str) -> float:
        """Run `bart arguments`; returns its wall time in seconds.

        Raises:
            RuntimeError: bart failed; with what it printed.
        """
        started = time.perf_counter()
        done = subprocess.run(
            ["bart", *arguments], cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise RuntimeError(f"bart {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return seconds

    def write(self, name: str, array: NDArray[np.complex64]) -> None:
        """Write `(coils, z, y, x)`."""
        sizes = " ".join(str(n) for n in array.shape[::-1])
        (self._folder / f"{name}.hdr").write_text(f"# Dimensions\n{sizes}\n")
        np.ascontiguousarray(array, np.complex64).tofile(self._folder / f"{name}.cfl")

    def read(self, name: str) -> NDArray[np.complex64]:
        """Read `(coils, z, y, x)`; one coil for an image."""
        sizes = [int(n) for n in (self._folder / f"{name}.hdr").read_text().splitlines()[1].split()]
        sizes += [1] * (4 - len(sizes))
        return np.fromfile(self._folder / f"{name}.cfl", np.complex64).reshape(sizes[3::-1])
