"""Radial readouts made from a fully sampled brain: `sense` beside BART's `pics` and sigpy's CG-SENSE, error and time.

Run: `python tests/benchmarks/nonuniform_radial.py [quality] [time]` (both without an argument). Needs `bart` on the
PATH, sigpy, and the local brain (8 coils, 230 x 180, set into 230 x 230).

The samples of 64 spokes of 460 points are the exact sums over the pixels of the coil images (finufft in double
precision, 1e-9). Truth: root of the sum of squares of the coil images. Errors are of the magnitude inside a mask
(truth above 10 % of its maximum), after the one factor that fits best. Ours runs at its defaults, maps from the same
spokes. BART and sigpy get the regularisation, the maps and (sigpy) the weights that are best for them; the maps are
BART's ESPIRiT from the same spokes, or ours.

Times: 2 threads (or as many as OMP_NUM_THREADS says: one on a busy machine, where threads that wait for each other lose
most), interleaved rounds, medians. BART runs as a command: files and start are measured with `bart copy` and
given beside.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import finufft
import h5py
import numpy as np
import torch
from bart_command import Bart
from nonuniform_scans import DATA, Complex, Real, bart_maps, bart_pics, magnitude, make_group, nrmse, write_for_bart

from pipelines.operators.fourier import to_image
from pipelines.operators.nonuniform import NonUniform
from pipelines.parameters import SenseParameters
from pipelines.pipeline import Pipeline
from pipelines.preprocess.nonuniform import prepare_nonuniform
from pipelines.preprocess.sensitivities import estimate_maps
from pipelines.scan_header import TrajectoryType

N, SPOKES, SAMPLES = 230, 64, 460
REGULARISATIONS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
ITERATIONS = (10, 30)
ROUNDS = 7
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


def brain() -> Complex:
    """Coil images `(coils, 230, 230)`."""
    with h5py.File(DATA / "brain_8ch_full_localonly.h5") as file:
        images = to_image(torch.from_numpy(file["kspace"][()])).numpy()
    left = (N - images.shape[2]) // 2
    return np.pad(images, ((0, 0), (0, 0), (left, N - images.shape[2] - left)))


def spokes() -> Real:
    """Positions `(spokes, samples, 2)` in cycles a pixel, x before y."""
    angle = np.arange(SPOKES) * np.pi / SPOKES
    radius = (np.arange(SAMPLES) - SAMPLES // 2) / SAMPLES
    return np.stack([np.outer(np.cos(angle), radius), np.outer(np.sin(angle), radius)], -1).astype(np.float32)


def sample(images: Complex, trajectory: Real) -> Complex:
    """Exact samples of coil images, orthonormal scale."""
    radians = 2 * np.pi * trajectory.reshape(-1, 2).astype(np.float64)
    plan = finufft.Plan(2, (N, N), len(images), eps=1e-9, isign=-1)
    plan.setpts(np.ascontiguousarray(radians[:, 1]), np.ascontiguousarray(radians[:, 0]))
    values = plan.execute(images.astype(np.complex128)) / N
    return values.reshape(len(images), *trajectory.shape[:2]).astype(np.complex64)


def sigpy_sense(
    samples: Complex, trajectory: Real, maps: Complex, regularisation: float, iterations: int, weights: Real | None
) -> Complex:
    """CG-SENSE of sigpy."""
    from sigpy.mri.app import SenseRecon

    app = SenseRecon(
        samples,
        maps,
        lamda=regularisation,
        weights=weights,
        coord=trajectory[..., ::-1] * N,
        max_iter=iterations,
        show_pbar=False,
    )
    return np.asarray(app.run())


def our_maps(samples: Complex, trajectory: Real) -> Complex:
    """The maps that `sense` makes of these samples."""
    group = make_group(samples, trajectory, N, TrajectoryType.RADIAL)
    calibration = prepare_nonuniform(group, SenseParameters(), "cpu").prepared.calibration
    assert calibration is not None
    return estimate_maps(calibration, (1, N, N))[:, 0].numpy()


def compare_quality(bart: Bart, samples: Complex, trajectory: Real, truth: Real) -> None:
    """Errors against the truth."""
    from sigpy.mri import pipe_menon_dcf

    group = make_group(samples, trajectory, N, TrajectoryType.RADIAL)
    for name in ("sense", "zero_filled"):
        images = Pipeline(name, {}, "cpu")(group, {}).images
        print(f"{name:52} NRMSE {nrmse(np.asarray(images[0].pixels[0, 0]), truth):.4f}")
    write_for_bart(bart, samples, trajectory, N)
    maps = {}
    for crop in ("0.8", "0"):
        bart_maps(bart, N, crop)
        maps[f"BART's maps, crop {crop}"] = bart.read("maps")[:, 0]
    maps["our maps"] = our_maps(samples, trajectory)
    for label, values in maps.items():
        bart.write("maps", values[:, None])
        tried = {}
        for regularisation, iterations in product(REGULARISATIONS, ITERATIONS):
            bart_pics(bart, regularisation, iterations)
            tried[regularisation, iterations] = nrmse(magnitude(bart.read("image")), truth)
        best = min(tried, key=lambda key, tried=tried: tried[key])
        print(f"{'BART pics, ' + label:52} NRMSE {tried[best]:.4f}   (r {best[0]:g}, {best[1]} iterations)")
    density = np.asarray(pipe_menon_dcf(trajectory[..., ::-1] * N, img_shape=(N, N), show_pbar=False), np.float32)
    scaled = samples / np.abs(samples).max()
    for label, weighted in product(maps, (False, True)):
        tried = {}
        for regularisation, iterations in product(REGULARISATIONS, ITERATIONS):
            weights = density / density.max() if weighted else None
            image = sigpy_sense(scaled, trajectory, maps[label], regularisation, iterations, weights)
            tried[regularisation, iterations] = nrmse(magnitude(image), truth)
        best = min(tried, key=lambda key, tried=tried: tried[key])
        name = f"sigpy SenseRecon, {label}{', weighted' if weighted else ''}"
        print(f"{name:52} NRMSE {tried[best]:.4f}   (lamda {best[0]:g}, {best[1]} iterations)")


def sigpy_times(samples: Complex, trajectory: Real, images: Complex, maps: Complex) -> dict[str, float]:
    """Seconds of sigpy's transforms and reconstructions; for a process of its own, whose threads disturb nobody."""
    import numba
    import sigpy

    numba.set_num_threads(THREADS)
    coord = np.ascontiguousarray(trajectory[..., ::-1] * N)

    def transforms() -> None:
        sigpy.nufft_adjoint(sigpy.nufft(images, coord), coord, oshape=images.shape)

    transforms()
    return {
        "forward and adjoint: sigpy": seconds(transforms),
        "image: sigpy, 30 iterations": seconds(lambda: sigpy_sense(samples, trajectory, maps, 0.001, 30, None)),
        "image: sigpy, 10 iterations": seconds(lambda: sigpy_sense(samples, trajectory, maps, 0.001, 10, None)),
    }


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def compare_time(bart: Bart, samples: Complex, trajectory: Real, images: Complex) -> None:
    """Wall times, interleaved."""
    operator = NonUniform(torch.from_numpy(trajectory)[None], (N, N))
    coils = torch.from_numpy(images)[None, :, None]
    group = make_group(samples, trajectory, N, TrajectoryType.RADIAL)
    sense = Pipeline("sense", {}, "cpu")
    write_for_bart(bart, samples, trajectory, N)
    bart.write("images", images[:, None])
    bart_maps(bart, N)
    maps = bart.read("maps")[:, 0]
    scaled = samples / np.abs(samples).max()
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        for round_ in range(ROUNDS + 1):
            if round_ == 1:
                rows.clear()  # the first round compiles, plans and fills caches
            note("forward and adjoint: ours", seconds(lambda: operator.adjoint(operator(coils))))
            stages = sense(group, {}).stages_s
            note("maps: ours (whole preparation)", stages["noise"] + stages["csm"])
            note("image: ours", stages["recon"])
            note("deviation: ours", stages["uncertainty"])
            files = bart.run("copy", "images", "again") + bart.run("copy", "ksp", "again")
            commands = bart.run("nufft", "traj", "images", "out") + bart.run("nufft", "-a", "traj", "ksp", "out")
            note("forward and adjoint: BART", commands)
            note("forward and adjoint: BART less files", commands - files)
            note("maps: BART", bart_maps(bart, N))
            note("image: BART, 30 iterations", bart_pics(bart, 0.003))
            note("image: BART, 10 iterations", bart_pics(bart, 0.003, 10))
            for name, value in elsewhere.submit(sigpy_times, scaled, trajectory, images, maps).result().items():
                note(name, value)
    print(f"\n{torch.get_num_threads()} threads, {ROUNDS} interleaved rounds")
    print(f"{'':40} median ms    min ms   median against ours")
    for name in sorted(rows):
        median, own = (
            statistics.median(values)
            for values in (rows[name], next(rows[key] for key in rows if key.startswith(name.split(":")[0])))
        )
        print(f"{name:40} {1e3 * median:9.1f} {1e3 * min(rows[name]):9.1f}   {median / own:10.2f}")


def main() -> None:
    """Print the parts asked for."""
    parts = sys.argv[1:] or ["quality", "time"]
    images, trajectory = brain(), spokes()
    samples = sample(images, trajectory)
    truth = np.asarray(np.sqrt(np.square(np.abs(images)).sum(0)), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        bart = Bart(Path(folder), THREADS)
        if "quality" in parts:
            torch.set_num_threads(1)
            compare_quality(bart, samples, trajectory, truth)
        if "time" in parts:
            torch.set_num_threads(THREADS)
            compare_time(bart, samples, trajectory, images)


if __name__ == "__main__":
    main()
