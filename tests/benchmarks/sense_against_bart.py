"""`sense` beside BART's ESPIRiT + CG-SENSE on the same k-space: error, time, and what other coil maps would give.

Run: `python tests/benchmarks/sense_against_bart.py [quality] [time] [maps]` (all three without an argument). Needs
`bart` on the PATH; the quality part needs the local 8-channel brain.

Errors are of the magnitude inside a mask (reference above 10 % of its maximum), after the one factor that fits it best
to the reference. References: `rss`, the root sum of squares of the fully sampled coil images, and `bart`, these
combined with BART's maps from the full data. Neither uses anything of ours. BART gets the regularisation and the crop
that are best for it in each case; ours always runs at its defaults.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from bart_command import Bart
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pipelines.operators.encoding import ColumnNormal
from pipelines.operators.fourier import to_image, to_kspace
from pipelines.parameters import SenseParameters
from pipelines.phantom import birdcage_coils, head_phantom, smooth_phase
from pipelines.preprocess.sensitivities import estimate_maps
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.regularisation import MOST_REGULARISATION
from pipelines.recon.sense import Sense
from pipelines.solvers.cg import conjugate_gradients

DATA = Path("/work/shared/data/kspace")
CALIBRATION_LINES = 24
REGULARISATIONS = (0.001, 0.003, 0.01, 0.02, 0.03, 0.06, 0.1)
ROUNDS = 9


@dataclass(frozen=True)
class Scan:
    """One undersampled slice: k-space `(coils, 1, y, x)`, which lines it holds, and references `(1, y, x)` by name."""

    name: str
    kspace: Tensor
    lines: Tensor
    references: dict[str, Tensor]
    noise_std: float | None = None
    """None where it was not measured."""

    @property
    def prepared(self) -> Prepared:
        n_y = self.kspace.shape[2]
        start = n_y // 2 - CALIBRATION_LINES // 2
        calibration = self.kspace[:, :, start : start + CALIBRATION_LINES].contiguous()
        columns = torch.ones(self.kspace.shape[-1], dtype=torch.bool)
        return Prepared(
            self.kspace[None],
            self.lines.float()[None, None],
            calibration,
            self.noise_std or 1.0,
            self.noise_std is not None,
            columns,
        )


def pattern(n_y: int, acceleration: int) -> Tensor:
    """Every R-th line, the centre among them, and the calibration lines."""
    lines = torch.zeros(n_y, dtype=torch.bool)
    lines[n_y // 2 % acceleration :: acceleration] = True
    start = n_y // 2 - CALIBRATION_LINES // 2
    lines[start : start + CALIBRATION_LINES] = True
    return lines


def undersample(
    name: str, full: Tensor, acceleration: int, references: dict[str, Tensor], noise_std: float | None = None
) -> Scan:
    lines = pattern(full.shape[2], acceleration)
    return Scan(f"{name} R={acceleration}", full * lines[:, None], lines, references, noise_std)


def brains(bart: Bart) -> Iterator[Scan]:
    """The fully sampled local brain at R = 2, 3, 4; the 12-channel one beside it lacks 149 of its 256 lines."""
    with h5py.File(DATA / "brain_8ch_full_localonly.h5") as file:
        full = torch.from_numpy(file["kspace"][()])[:, None]
    coils = to_image(full)
    bart.write("full", full.numpy())
    bart.run("ecalib", "-m1", "-c0", "full", "full_maps")
    combined = (coils * torch.from_numpy(bart.read("full_maps")).conj()).sum(0).abs()
    references = {"rss": coils.abs().square().sum(0).sqrt(), "bart": combined}
    for acceleration in (2, 3, 4):
        yield undersample("8 channels", full, acceleration, references)


def simulated(n: int, n_coils: int, acceleration: int, noise_std: float) -> tuple[Scan, Tensor]:
    """A head phantom with birdcage coils and white noise, and its true maps; the reference is the object."""
    rng = np.random.default_rng(7)
    image = torch.from_numpy(head_phantom(1, n, n) * smooth_phase((n, n), rng))
    maps = torch.from_numpy(birdcage_coils(n_coils, (n, n)))[:, None]
    full = to_kspace(image[None] * maps)
    noise = rng.standard_normal((*full.shape, 2), np.float32) * (noise_std / 2**0.5)
    full = full + torch.view_as_complex(torch.from_numpy(noise))
    return undersample(f"phantom {n}x{n}x{n_coils}", full, acceleration, {"object": image.abs()}, noise_std), maps


def errors(image: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """NRMSE, PSNR in dB and SSIM of a magnitude image inside the mask, best factor applied."""
    mask = reference > 0.1 * reference.max()
    magnitude = image.abs()
    inside, target = magnitude[mask].double(), reference[mask].double()
    factor = float((inside @ target) / (inside @ inside))
    gap = float(torch.linalg.vector_norm(factor * inside - target))
    peak = float(target.max())
    _, similarity = structural_similarity(
        factor * magnitude[0].numpy(), reference[0].numpy(), data_range=peak, full=True
    )
    psnr = 20 * np.log10(peak * mask.sum().item() ** 0.5 / gap)
    return gap / float(torch.linalg.vector_norm(target)), float(psnr), float(similarity[mask[0].numpy()].mean())


def bart_sense(bart: Bart, regularisation: float, crop: str = "0.8", iterations: int = 30) -> tuple[float, float]:
    """ESPIRiT and CG-SENSE of `kspace` into `image`; seconds of both commands, files included."""
    maps_s = bart.run("ecalib", "-m1", f"-r{CALIBRATION_LINES}", f"-c{crop}", "kspace", "maps")
    solve_s = bart.run("pics", "-S", "-l2", f"-r{regularisation:g}", f"-i{iterations}", "kspace", "maps", "image")
    return maps_s, solve_s


def compare_quality(bart: Bart) -> None:
    """Part a: errors on real data."""
    print("case               reference    ours: NRMSE  PSNR  SSIM     BART: NRMSE  PSNR  SSIM (best r, crop)   ratio")
    for scan in brains(bart):
        ours = Sense(SenseParameters(), "cpu")(scan.prepared).image[0]
        bart.write("kspace", scan.kspace.numpy())
        tried = {}
        for crop in ("0.8", "0"):
            for regularisation in REGULARISATIONS:
                bart_sense(bart, regularisation, crop)
                tried[regularisation, crop] = torch.from_numpy(bart.read("image"))[0]
        for name, reference in scan.references.items():
            own = errors(ours, reference)
            choice, best = min(
                ((key, errors(image, reference)) for key, image in tried.items()), key=lambda pair: pair[1][0]
            )
            print(
                f"{scan.name:18} {name:9} {own[0]:15.4f} {own[1]:6.2f} {own[2]:.3f} {best[0]:15.4f} {best[1]:6.2f} "
                f"{best[2]:.3f}  ({choice[0]:g}, {choice[1]})  {own[0] / best[0]:12.3f}"
            )


def compare_time(bart: Bart) -> None:
    """Part b: wall time, interleaved; BART with its files, and less the time to read and write them."""
    for n, acceleration in ((320, 4), (256, 2)):
        scan, _ = simulated(n, 8, acceleration, noise_std=0.03)
        reference = scan.references["object"]
        bart.write("kspace", scan.kspace.numpy())

        def bart_error(regularisation: float, iterations: int = 30, reference: Tensor = reference) -> float:
            bart_sense(bart, regularisation, iterations=iterations)
            return errors(torch.from_numpy(bart.read("image"))[0], reference)[0]

        best = min(REGULARISATIONS, key=bart_error)
        target = bart_error(best)
        fewest = next(count for count in (5, 8, 10, 15, 20, 25, 30) if bart_error(best, count) <= 1.01 * target)
        sense = Sense(SenseParameters(), "cpu")
        rows: dict[str, list[float]] = {}
        error = {"sense": 0.0, "BART, 30 iterations": target, f"BART, {fewest} iterations": bart_error(best, fewest)}
        for _ in range(ROUNDS):
            result = sense(scan.prepared)
            error["sense"] = errors(result.image[0], reference)[0]
            for stage, seconds in result.stages_s.items():
                rows.setdefault(f"  of it {stage}", []).append(seconds)
            rows.setdefault("sense", []).append(result.stages_s["csm"] + result.stages_s["recon"])
            files_s = bart.run("copy", "kspace", "again") + bart.run("copy", "maps", "again")
            for count in sorted({30, fewest}):
                seconds = sum(bart_sense(bart, best, iterations=count))
                rows.setdefault(f"BART, {count} iterations", []).append(seconds)
                rows.setdefault(f"  files and start taken off, {count}", []).append(seconds - files_s)
        print(f"\n{scan.name}, {torch.get_num_threads()} threads, {ROUNDS} interleaved rounds, BART r={best:g}")
        print(f"{'maps + solve':32} median ms    min ms   NRMSE   median against sense")
        own = statistics.median(rows["sense"])
        for name, times in rows.items():
            shown = f"{error[name]:.4f}" if name in error else ""
            median = statistics.median(times)
            print(f"{name:32} {1e3 * median:9.1f} {1e3 * min(times):9.1f}   {shown:6}  {median / own:10.2f}")
        print(f"sense: {result.details}")


def compare_maps(bart: Bart) -> None:
    """Part c: error of the maps against the truth (phase aside) and of the image solved with them."""
    print("\nmaps                      noise   map error   NRMSE      ms")
    for noise_std in (0.0, 0.03, 0.15):
        scan, truth = simulated(320, 8, 4, noise_std)
        reference = scan.references["object"]
        calibration = scan.prepared.calibration
        assert calibration is not None
        shape = (1, 320, 320)
        bart.write("kspace", scan.kspace.numpy())
        methods: dict[str, Callable[[], Tensor]] = {
            "truth": lambda truth=truth: truth,
            "ours (ESPIRiT)": lambda calibration=calibration, shape=shape: estimate_maps(calibration, shape),
            "Walsh, torch, 9 x 9": lambda calibration=calibration: walsh(calibration, (320, 320)),
            "BART ecalib": lambda: bart_maps(bart, "ecalib", "-m1", "-r24", "kspace"),
            "BART ecalib, no crop": lambda: bart_maps(bart, "ecalib", "-m1", "-c0", "-r24", "kspace"),
            "BART caldir": lambda: bart_maps(bart, "caldir", "24", "kspace"),
        }
        for name, method in methods.items():
            times = []
            for _ in range(3):
                started = time.perf_counter()
                maps = method()
                times.append(time.perf_counter() - started)
            mask = (reference > 0.1 * reference.max()) & (maps.abs().sum(0) > 0)
            likeness = (maps.conj() * truth).sum(0).abs()[mask] / torch.linalg.vector_norm(maps, dim=0)[mask]
            map_error = float((2 - 2 * likeness.clamp(max=1)).mean().sqrt())
            nrmse = errors(solve(scan, maps), reference)[0]
            print(f"{name:25} {noise_std:5.2f} {map_error:11.4f} {nrmse:7.4f} {1e3 * statistics.median(times):7.1f}")

    print("\nNRMSE on real data      ours   Walsh   Walsh inside our support")
    for scan in brains(bart):
        calibration = scan.prepared.calibration
        assert calibration is not None
        n_y, n_x = scan.kspace.shape[2:]
        ours, other = estimate_maps(calibration, (1, n_y, n_x)), walsh(calibration, (n_y, n_x))
        trials = (ours, other, other * (ours.abs().sum(0) > 0))
        values = (errors(solve(scan, maps), scan.references["rss"])[0] for maps in trials)
        print(f"{scan.name:20}", *(f"{value:7.4f}" for value in values))


def solve(scan: Scan, maps: Tensor) -> Tensor:
    """CG-SENSE with given maps, at the defaults of `sense`."""
    weights = scan.lines.float()[None, None, :, None].expand(1, *maps.shape[1:])
    normal = ColumnNormal(maps, weights)
    right_side = normal.to_columns((to_image(scan.kspace) * maps.conj()).sum(0)[None])
    weight = MOST_REGULARISATION
    solved = conjugate_gradients(lambda v: normal(v) + weight * v, right_side, iterations=50, tolerance=1e-4)
    return normal.to_image(solved.solution)[0]


def bart_maps(bart: Bart, *arguments: str) -> Tensor:
    bart.run(*arguments, "maps_alone")
    return torch.from_numpy(bart.read("maps_alone"))


def walsh(calibration: Tensor, shape: tuple[int, int], window: int = 9) -> Tensor:
    """Dominant eigenvector of the local covariance of low-resolution coil images (Walsh 2000), windowed."""
    n_coils, _, n_lines, n_x = calibration.shape
    low = calibration[:, 0, :, n_x // 2 - n_lines // 2 : n_x // 2 - n_lines // 2 + n_lines]
    hann = torch.hann_window(n_lines + 2)[1:-1]
    padded = torch.zeros((n_coils, *shape), dtype=low.dtype)
    top, left = (n // 2 - n_lines // 2 for n in shape)
    padded[:, top : top + n_lines, left : left + n_lines] = low * hann * hann[:, None]
    coils = to_image(padded)
    products = (coils[:, None] * coils.conj()).reshape(-1, 1, *shape)
    smooth = torch.complex(*(avg_pool2d(part, window, 1, window // 2) for part in (products.real, products.imag)))
    covariance = smooth.reshape(n_coils, n_coils, *shape).permute(2, 3, 0, 1)
    vector = torch.linalg.eigh(covariance).eigenvectors[..., -1]
    return vector.permute(2, 0, 1)[:, None].contiguous()


def main() -> None:
    """Print the parts asked for."""
    torch.set_num_threads(2)
    parts = {"quality": compare_quality, "time": compare_time, "maps": compare_maps}
    with tempfile.TemporaryDirectory() as folder:
        bart = Bart(Path(folder))
        for name in sys.argv[1:] or parts:
            parts[name](bart)


if __name__ == "__main__":
    main()
