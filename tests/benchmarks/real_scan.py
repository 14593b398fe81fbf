"""A real Siemens scan through `echotrain serve` and the client, against BART on the same raw data.

Reads `siemens_3t_phantom_14ch_r3_localonly.ismrmrd.h5` in place (no licence is stated, so it is never copied), and
does the
whole road for BART independently with ismrmrd-python and numpy: whitening with the noise scan, oversampling removal,
placement, then `bart ecalib` and `bart pics`. Prints the NRMSE inside the object after optimal scaling, and leaves a
PNG.

    python tests/benchmarks/real_scan.py --output bench-output
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

import ismrmrd
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from bart_command import Bart

from pipelines.mrd import AcquisitionFlag
from server.client import Client, ScanReply
from server.local_server import local_server
from server.scan_file import open_scan

FILE = Path("../shared/data/kspace/siemens_3t_phantom_14ch_r3_localonly.ismrmrd.h5")


async def send(port: int, pipeline: str) -> ScanReply:
    with open_scan(FILE) as scan:
        async with Client("127.0.0.1", port) as client:
            return (await client.send_scan(pipeline, scan.header, scan.batches())).check()


def bart_image() -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """The same raw data through ismrmrd-python, numpy and BART; also the k-space for it, (coils, z, y, x)."""
    dataset = ismrmrd.Dataset(str(FILE), "dataset", mode="r")
    header = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
    encoding = header.encoding[0]
    n_x, n_y = encoding.encodedSpace.matrixSize.x, encoding.encodedSpace.matrixSize.y
    crop = encoding.reconSpace.matrixSize.x
    offset = n_y // 2 - encoding.encodingLimits.kspace_encoding_step_1.center
    readouts = [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())]
    noise = np.concatenate([r.data for r in readouts if r.is_flag_set(AcquisitionFlag.IS_NOISE_MEASUREMENT)], 1)
    whiten = np.linalg.inv(np.linalg.cholesky(noise @ noise.conj().T / (noise.shape[1] - 1)))
    kspace = np.zeros((len(noise), 1, n_y, crop), np.complex64)
    for readout in readouts:
        if readout.is_flag_set(AcquisitionFlag.IS_NOISE_MEASUREMENT):
            continue
        line = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(whiten @ readout.data, axes=1), norm="ortho"), axes=1)
        line = line[:, n_x // 2 - crop // 2 : n_x // 2 + crop // 2]
        line = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(line, axes=1), norm="ortho"), axes=1)
        kspace[:, 0, readout.idx.kspace_encode_step_1 + offset] = line
    with tempfile.TemporaryDirectory() as folder:
        bart = Bart(Path(folder))
        bart.write("kspace", kspace)
        bart.run("ecalib", "-m1", "kspace", "maps")
        bart.run("pics", "-S", "-l2", "-r0.001", "-i50", "kspace", "maps", "image")
        return bart.read("image")[0, 0], kspace


def compare(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> tuple[float, float, NDArray[np.bool_]]:
    """NRMSE after optimal scaling inside the object (above 10 % of the 99th percentile), the scale, the object."""
    mask = theirs > 0.1 * np.percentile(theirs, 99)
    scale = float((ours * theirs)[mask].sum() / (ours**2)[mask].sum())
    return float(np.linalg.norm((scale * ours - theirs)[mask]) / np.linalg.norm(theirs[mask])), scale, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    output = parser.parse_args().output
    if not FILE.exists():
        sys.exit(f"{FILE} is not here; nothing was compared")
    with open_scan(FILE) as scan:
        n_readouts = sum(len(batch) for batch in scan.batches())
    with local_server(output / "real_scan.log") as server:
        replies = {name: asyncio.run(send(server.port, name)) for name in ("sense", "zero_filled")}
    theirs = np.abs(bart_image()[0])
    result: dict[str, object] = {"readouts": n_readouts}
    for name, reply in replies.items():
        error, scale, mask = compare(reply.images[0].pixels[0, 0].astype(np.float32), theirs)
        result[name] = {
            "images": len(reply.images),
            "texts": reply.texts,
            "nrmse_against_bart": round(error, 4),
            "scale": round(scale, 4),
            "object_pixels": int(mask.sum()),
            "seconds": round(reply.closed_s or 0.0, 3),
        }
    print(json.dumps(result, indent=2))
    picture(replies["sense"], theirs, output / "real_scan.png")


def picture(reply: ScanReply, theirs: NDArray[np.float32], path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ours, deviation = (image.pixels[0, 0].astype(np.float32) for image in reply.images[:2])
    _, scale, _ = compare(ours, theirs)
    top = float(np.percentile(theirs, 99.8))
    figure, axes = plt.subplots(1, 4, figsize=(18, 5), layout="constrained")
    for axis, (title, data, limit, colours) in zip(axes, (
        ("Echotrain sense", ours * scale, top, "gray"), ("BART ecalib + pics", theirs, top, "gray"),
        ("|difference| x 10", np.abs(ours * scale - theirs) * 10, top, "gray"),
        ("standard deviation", deviation * scale, float(np.percentile(deviation * scale, 99.5)), "viridis"),
    ), strict=True):  # fmt: skip
        shown = axis.imshow(data, cmap=colours, vmin=0, vmax=limit)
        axis.set_title(title)
        axis.set_axis_off()
        figure.colorbar(shown, ax=axis, shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
