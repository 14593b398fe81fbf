"""Is the uncertainty map right? Scans that differ only in noise, against the maps that came with them.

A brain slice with eight coils is simulated once; every scan adds its own correlated noise to the measured samples and
brings its own noise scan, at another dwell time. Each goes through the whole pipeline (noise estimate, sensitivities,
reconstruction, uncertainty) by itself. The standard deviation of the magnitude over the scans is then compared with
the map that one scan returned, inside the head.

The empirical deviation of n scans is itself uncertain by 1 / sqrt(2 (n - 1)), 5 % for 200, and its correlation with
even the exact map is limited by that: `ceiling` is the limit, estimated from the spread of the mean map. The
comparison is therefore also made on means over blocks of 4 x 4 pixels, where the empirical deviation is uncertain by
a quarter of that. Where the true map hardly varies (full sampling far above the noise: coil images combined with
normalised sensitivities have the same noise everywhere) no correlation says anything; the ratio does.

Run: python tests/benchmarks/uncertainty_calibration.py [--scans 200] [--size 128] [--noise 0.03 0.1] [--methods sense]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.frame import Group, Grouping, NoiseCovariance
from pipelines.phantom import draw_noise, noise_covariance
from pipelines.pipeline import Pipeline
from pipelines.scan_header import parse_scan_header
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol

ANATOMY = Path("/work/shared/data/train/brain_t1_1mm.h5")
BLOCK = 4
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "sense": ("sense", {}),
    "zero_filled rss": ("zero_filled", {}),
    "zero_filled sensitivity": ("zero_filled", {"combine": "sensitivity"}),
}


def brain_slice(size: int) -> NDArray[np.float32]:
    """An axial slice of a head, its longer side nearly filling `size`, between 0 and 1."""
    with h5py.File(ANATOMY) as file:
        volume = file["colin27"]
        slice_ = np.asarray(volume[volume.shape[0] // 2], np.float32)
    side = max(slice_.shape) + 16
    padded = np.zeros((side, side), np.float32)
    top, left = (side - slice_.shape[0]) // 2, (side - slice_.shape[1]) // 2
    padded[top : top + slice_.shape[0], left : left + slice_.shape[1]] = slice_
    resized = torch.nn.functional.interpolate(torch.from_numpy(padded)[None, None], (size, size), mode="area")[
        0, 0
    ].numpy()
    return np.asarray(resized / resized.max(), np.float32)


def head_mask(anatomy: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Everything between the outermost tissue of each row and each column, dark regions included."""
    tissue = anatomy > 0.08
    along_x = np.logical_or.accumulate(tissue, 1) & np.logical_or.accumulate(tissue[:, ::-1], 1)[:, ::-1]
    along_y = np.logical_or.accumulate(tissue, 0) & np.logical_or.accumulate(tissue[::-1], 0)[::-1]
    return along_x & along_y


def noise_free_group(anatomy: NDArray[np.float32], acceleration: int) -> tuple[Group, Protocol]:
    """One slice without noise, as assembly hands it on."""
    protocol = Protocol(acceleration=acceleration, noise_std=0.0, noise_readouts=0)
    scan = simulate(anatomy, protocol)
    assembler = Assembler(parse_scan_header(scan.header), Grouping.SLICE, HeapSlots())
    groups = [group for batch in scan.batches for group in assembler.add(batch)] + assembler.finish()
    if len(groups) != 1:
        raise RuntimeError(f"expected one group, assembled {len(groups)}")
    return groups[0], protocol


def noisy(group: Group, protocol: Protocol, covariance: NDArray[np.complex128], rng: np.random.Generator) -> Group:
    """The same scan with noise of its own and a noise scan of its own."""
    frames, _, z, y, x = group.kspace.shape
    noise = np.moveaxis(draw_noise(covariance, (frames, z, y, x), rng), 3, 1)
    kspace = group.kspace + noise * (group.counts > 0)[:, None, :, :, None]
    scale = protocol.noise_bandwidth * protocol.dwell_us / protocol.noise_dwell_us
    samples = draw_noise(covariance * scale, (64, 256), rng)
    return replace(
        group, kspace=kspace.astype(np.complex64), noise=NoiseCovariance.of(samples, protocol.noise_dwell_us)
    )


def measure(
    pipeline: Pipeline, group: Group, protocol: Protocol, covariance: NDArray[np.complex128], scans: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, float]]:
    """Magnitudes and maps of all scans, `(scans, y, x)` each, and median seconds by stage."""
    rng = np.random.default_rng(1)
    magnitudes, deviations, stages = [], [], []
    for _ in range(scans):
        output = pipeline(noisy(group, protocol, covariance, rng), {})
        magnitude, deviation = output.images
        magnitudes.append(np.asarray(magnitude.pixels[0, 0], np.float32))
        deviations.append(np.asarray(deviation.pixels[0, 0], np.float32))
        stages.append(output.stages_s)
    medians = {name: float(np.median([each[name] for each in stages])) for name in stages[0]}
    return np.stack(magnitudes), np.stack(deviations), medians


@dataclass(frozen=True, slots=True)
class Figures:
    """Agreement of one scan's map with the empirical deviation; correlations with the ceiling that finite scans set."""

    snr: float
    ratio: tuple[float, float, float]
    pixels: tuple[float, float]
    blocks: tuple[float, float]

    def format(self) -> str:
        """As a part of a table row: SNR, median, 5 % and 95 % of the ratio, correlations."""
        middle, low, high = self.ratio
        correlations = f"{self.pixels[0]:>6.3f} {self.pixels[1]:>7.3f} {self.blocks[0]:>6.3f} {self.blocks[1]:>7.3f}"
        return f"{self.snr:>5.1f} {middle:>6.3f} {low:>5.2f} {high:>5.2f} {correlations}"


def compare(magnitudes: NDArray[np.float32], deviations: NDArray[np.float32], mask: NDArray[np.bool_]) -> Figures:
    """Compare the spread of magnitudes over scans with the map of the first scan, inside the mask."""
    inside = mask & (deviations > 0).all(0)
    empirical, returned, mean = magnitudes.std(0, ddof=1), deviations[0], deviations.mean(0)
    middle, low, high = np.quantile(empirical[inside] / returned[inside], (0.5, 0.05, 0.95))
    variance_of_error = float((mean[inside] ** 2).mean()) / (2 * (len(magnitudes) - 1))
    whole = block_mean(inside.astype(np.float32)) > 0.99
    blocks = [block_mean(each)[whole] for each in (empirical, returned, mean)]
    return Figures(
        float(np.median(magnitudes.mean(0)[inside] / mean[inside])),
        (float(middle), float(low), float(high)),
        correlation(empirical[inside], returned[inside], mean[inside], variance_of_error),
        correlation(blocks[0], blocks[1], blocks[2], variance_of_error / BLOCK**2),
    )


def correlation(
    empirical: NDArray[np.float32], returned: NDArray[np.float32], mean: NDArray[np.float32], variance_of_error: float
) -> tuple[float, float]:
    """Correlation, and the most that it could be with an empirical value of that much error."""
    spread = float(mean.var())
    return float(np.corrcoef(empirical, returned)[0, 1]), float(np.sqrt(spread / (spread + variance_of_error)))


def block_mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over blocks of `BLOCK` x `BLOCK` pixels."""
    y, x = (size // BLOCK for size in values.shape)
    return np.asarray(values[: y * BLOCK, : x * BLOCK].reshape(y, BLOCK, x, BLOCK).mean((1, 3)), np.float32)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument(
        "--noise",
        type=float,
        nargs="+",
        default=[0.03, 0.1],
        help="complex noise of a sample and coil; tissue is 0.3 to 1",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    anatomy = brain_slice(arguments.size)
    mask = head_mask(anatomy)
    print(f"{arguments.scans} scans of {arguments.size} x {arguments.size}, 8 coils, 24 calibration lines")
    print(
        f"{'method':<24} {'noise':>5} {'R':>2} {'SNR':>5} {'ratio':>6} {'5 %':>5} {'95 %':>5}"
        f" {'pixels':>6} {'ceiling':>7} {'blocks':>6} {'ceiling':>7} {'all ms':>6} {'unc ms':>6}"
    )
    started = time.perf_counter()
    for noise in arguments.noise:
        covariance = noise_covariance(8, noise, np.random.default_rng(0))
        for label in arguments.methods:
            name, parameters = METHODS[label]
            for acceleration in (1, 2, 4):
                group, protocol = noise_free_group(anatomy, acceleration)
                pipeline = Pipeline(name, parameters, "cpu")
                magnitudes, deviations, stages = measure(pipeline, group, protocol, covariance, arguments.scans)
                figures = compare(magnitudes, deviations, mask)
                print(
                    f"{label:<24} {noise:>5} {acceleration:>2} {figures.format()} {1e3 * sum(stages.values()):>6.1f}"
                    f" {1e3 * stages['uncertainty']:>6.1f}",
                    flush=True,
                )
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
