"""`sense` from fewer interleaves of a real spiral scan, beside BART's `pics` on the same data.

Run: `python tests/benchmarks/nonuniform_spiral.py`. Needs `bart` on the PATH and the local spiral scan (60 interleaves,
8 coils, resolution phantom). Pictures go to `bench-output/`.

There is no truth: each program is compared with its own image from all 60 interleaves, and with the other's. Ours runs
at its defaults, coil maps from the same interleaves. BART gets, for each number of interleaves, the regularisation that
is best for it, with its reference at each regularisation in turn: once at the least one, once at the one that suits it
best (`own best`: the smallest ratio of all). Maps of BART: from the same interleaves (inverse NUFFT of the centre,
ESPIRiT), and, as a second row, from all 60, which ours does not get.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import matplotlib as mpl
import numpy as np
import torch
from bart_command import Bart
from nonuniform_scans import DATA, Complex, Real, bart_maps, bart_pics, magnitude, make_group, nrmse, write_for_bart

from pipelines.pipeline import Pipeline
from pipelines.scan_header import TrajectoryType

mpl.use("Agg")
import matplotlib.pyplot as plt

N = 360
"""The object needs 340 pixels; a smaller field of view cuts it off, which no program survives undersampled."""
INTERLEAVES = (60, 30, 20)
REGULARISATIONS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
OUTPUT = Path("bench-output")


def read() -> tuple[Complex, Real]:
    """Samples `(coils, interleaves, samples)` and positions in cycles a pixel, x before y."""
    with h5py.File(DATA / "spiral_8ch_phantom_localonly.h5") as file:
        samples, k = file["data"][()], file["k"][()]
    return samples, np.stack([k.real, k.imag], -1).astype(np.float32)


def subset(samples: Complex, trajectory: Real, kept: int) -> tuple[Complex, Real]:
    """Every so many-th interleaf."""
    step = samples.shape[1] // kept
    return np.ascontiguousarray(samples[:, ::step]), np.ascontiguousarray(trajectory[::step])


def ours(samples: Complex, trajectory: Real, name: str) -> tuple[Real, Real]:
    """Magnitude and deviation."""
    output = Pipeline(name, {}, "cpu")(make_group(samples, trajectory, N, TrajectoryType.SPIRAL), {})
    for warning in output.warnings:
        print(f"  {name}: {warning}")
    details = {key: value[0] for key, value in output.images[0].meta.items() if key.startswith("Recon")}
    stages = " ".join(f"{stage} {seconds:.2f}" for stage, seconds in output.stages_s.items())
    print(f"  {name:12} {details.get('ReconIterations', '-'):>3} iterations; seconds: {stages}")
    magnitudes = [np.asarray(image.pixels[0, 0], np.float32) for image in output.images]
    return magnitudes[0], magnitudes[1]


def bart_images(bart: Bart, samples: Complex, trajectory: Real, *, own_maps: bool) -> dict[float, Real]:
    """An image for each regularisation; maps from these samples, or those that are there."""
    write_for_bart(bart, samples, trajectory, N)
    if own_maps:
        bart_maps(bart, N)
    images = {}
    for regularisation in REGULARISATIONS:
        bart_pics(bart, regularisation)
        images[regularisation] = magnitude(bart.read("image"))
    return images


def picture(rows: dict[str, list[Real]], name: str) -> None:
    """One row of images a method, one column a number of interleaves."""
    figure, axes = plt.subplots(len(rows), len(INTERLEAVES), figsize=(4 * len(INTERLEAVES), 4 * len(rows)))
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image, kept in zip(line, images, INTERLEAVES, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=float(np.quantile(image, 0.995)))
            axis.set_title(f"{label}, {kept} interleaves", fontsize=9)
            axis.set_axis_off()
    figure.tight_layout()
    OUTPUT.mkdir(exist_ok=True)
    figure.savefig(OUTPUT / name, dpi=80)
    plt.close(figure)


def main() -> None:
    """Print the table, write the pictures."""
    torch.set_num_threads(1)
    samples, trajectory = read()
    sense, deviation, plain = [], [], []
    theirs: dict[str, list[dict[float, Real]]] = {"same interleaves": [], "all 60": []}
    with tempfile.TemporaryDirectory() as folder:
        bart = Bart(Path(folder))
        for kept in INTERLEAVES:
            print(f"{kept} interleaves")
            some = subset(samples, trajectory, kept)
            image, its_deviation = ours(*some, "sense")
            sense.append(image)
            deviation.append(its_deviation)
            plain.append(ours(*some, "zero_filled")[0])
            theirs["same interleaves"].append(bart_images(bart, *some, own_maps=True))
        write_for_bart(bart, *subset(samples, trajectory, 60), N)
        bart_maps(bart, N)
        for kept in INTERLEAVES:
            theirs["all 60"].append(bart_images(bart, *subset(samples, trajectory, kept), own_maps=False))
    print("\nNRMSE against the own image from 60 interleaves")
    print(
        f"{'maps of BART':18} {'kept':>4} {'ours':>8} {'BART':>8} {'(r)':>8} {'ratio':>7} {'own best':>9} {'ratio':>7}"
    )
    for label, images in theirs.items():
        for index, kept in enumerate(INTERLEAVES[1:], 1):
            own = nrmse(sense[index], sense[0])
            best, at = min((nrmse(image, images[0][REGULARISATIONS[0]]), r) for r, image in images[index].items())
            least = min(nrmse(image, images[0][r]) for r, image in images[index].items())
            print(
                f"{label:18} {kept:4} {own:8.4f} {best:8.4f} {at:8g} {own / best:7.3f} {least:9.4f} {own / least:7.3f}"
            )
    print("\nAcross: against the other's image from 60 interleaves (BART's at its least regularisation)")
    for index, kept in enumerate(INTERLEAVES):
        images = theirs["same interleaves"]
        reference = images[0][REGULARISATIONS[0]]
        best = min(nrmse(image, sense[0]) for image in images[index].values())
        print(f"  {kept}: ours {nrmse(sense[index], reference):.4f}, BART {best:.4f}")
    best_images = [
        images[min(images, key=lambda r, i=images: nrmse(i[r], theirs["same interleaves"][0][REGULARISATIONS[0]]))]
        for images in theirs["same interleaves"]
    ]
    picture(
        {"sense": sense, "BART pics, best r": best_images, "zero_filled": plain, "sense, deviation": deviation},
        "nonuniform_spiral.png",
    )


if __name__ == "__main__":
    main()
