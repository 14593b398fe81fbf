"""How fast readouts go into place: readouts a second and share of memcpy speed, from memory into heap slots.

Run: `python tests/benchmarks/assembly_ingest.py`. The batches lie in one buffer as they do on the wire (2 + 340 bytes,
then the samples, no alignment). "ready" takes slots whose memory has been touched before, as in a pool of
shared memory; "heap" pays for fresh pages as well. Copying the same bytes with numpy into the same memory is timed
in between; medians of interleaved rounds.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from numpy.lib.stride_tricks import as_strided

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlot, HeapSlots, SlotSource
from pipelines.assembly.frame import Grouping
from pipelines.mrd import ACQUISITION_HEADER, AcquisitionFlag, Acquisitions
from pipelines.scan_header import Encoding, Limit, ScanHeader, Space

N_LINES = 250
BATCH = 50
ROUNDS = 9


def stream(n_samples: int, n_coils: int, n_frames: int) -> list[Acquisitions]:
    """Frames of `N_LINES` lines in batches of `BATCH` over one unaligned buffer."""
    n, row = n_frames * N_LINES, n_samples * n_coils * 8
    stride = 342 + row
    headers = np.zeros(n, ACQUISITION_HEADER)
    headers["number_of_samples"], headers["active_channels"] = n_samples, n_coils
    headers["center_sample"] = n_samples // 2
    headers["idx"]["kspace_encode_step_1"] = np.tile(np.arange(N_LINES), n_frames)
    headers["idx"]["repetition"] = np.repeat(np.arange(n_frames), N_LINES)
    headers["flags"][N_LINES - 1 :: N_LINES] = AcquisitionFlag.LAST_IN_SLICE.mask
    wire = np.zeros(n * stride, np.uint8)
    as_headers = as_strided(np.frombuffer(wire, np.uint8, offset=2), (n, 340), (stride, 1), writeable=True)
    as_headers[:] = headers.view(np.uint8).reshape(n, 340)
    samples = as_strided(wire[342:], (n, n_coils, n_samples * 8), (stride, n_samples * 8, 1), writeable=True)
    values = np.random.default_rng(1).standard_normal((N_LINES, n_coils, n_samples * 2)).astype(np.float32)
    for frame in range(n_frames):
        samples[frame * N_LINES : (frame + 1) * N_LINES] = values.view(np.uint8)
    heads = np.ndarray((n,), ACQUISITION_HEADER, wire.data, 2, (stride,))
    return [Acquisitions(heads[at : at + BATCH], samples[at : at + BATCH]) for at in range(0, n, BATCH)]


class ReadySlots:
    """Two blocks in turn, touched before; not zeroed again, since every line is overwritten."""

    def __init__(self, n_bytes: int) -> None:
        self.blocks = [HeapSlot(n_bytes), HeapSlot(n_bytes)]
        for block in self.blocks:
            block.data[:] = 0
        self._taken = 0

    def take(self, n_bytes: int) -> HeapSlot:
        """The block that was not taken last."""
        self._taken += 1
        slot = self.blocks[self._taken % 2]
        if slot.data.nbytes != n_bytes:
            raise RuntimeError(f"expected {slot.data.nbytes} bytes, asked for {n_bytes}")
        return slot


def assemble(scan: ScanHeader, slots: SlotSource, batches: list[Acquisitions]) -> float:
    """Seconds to assemble all batches."""
    assembler = Assembler(scan, Grouping.SLICE, slots)
    began = time.perf_counter()
    groups = sum(len(assembler.add(batch)) for batch in batches)
    seconds = time.perf_counter() - began
    n = sum(len(batch) for batch in batches)
    if groups != n // N_LINES or assembler.counts["imaging"] != n:
        raise RuntimeError(f"{groups} groups, {assembler.counts}")
    return seconds


def copy(slots: ReadySlots, batches: list[Acquisitions]) -> float:
    """Seconds to copy the samples of all batches, in order, with one numpy assignment each."""
    began = time.perf_counter()
    for at, batch in enumerate(batches):
        frame, part = divmod(at, N_LINES // BATCH)
        n_bytes = batch.samples.shape[1] * batch.samples.shape[2]
        block = slots.blocks[frame % 2].data.reshape(N_LINES, *batch.samples.shape[1:])
        block[part * BATCH : (part + 1) * BATCH] = batch.samples
        if block.nbytes != N_LINES * n_bytes:
            raise RuntimeError("the block has the wrong size")
    return time.perf_counter() - began


def main() -> None:
    """Print one line for each shape."""
    columns = ("samples x coils", "heap, 1/s", "ready, 1/s", "ready GB/s", "copy GB/s", "share")
    print(" ".join(f"{column:>15}" for column in columns))
    for n_samples, n_coils, n_frames in ((128, 1, 40), (256, 8, 10), (512, 32, 8)):
        batches = stream(n_samples, n_coils, n_frames)
        n = n_frames * N_LINES
        space = Space((n_samples, N_LINES, 1), (300.0, 300.0, 5.0))
        encoding = Encoding(space, space, limits={"kspace_encode_step_1": Limit(0, N_LINES - 1, N_LINES // 2)})
        scan = ScanHeader((encoding,), receiver_channels=n_coils)
        ready = ReadySlots(N_LINES * n_samples * n_coils * 8)
        rounds = [
            (assemble(scan, HeapSlots(), batches), assemble(scan, ready, batches), copy(ready, batches))
            for _ in range(ROUNDS)
        ]
        heap, warm, bare = (statistics.median(column) for column in zip(*rounds, strict=True))
        size = n * n_samples * n_coils * 8 / 1e9
        cells = (
            f"{n_samples} x {n_coils}",
            f"{n / heap:,.0f}",
            f"{n / warm:,.0f}",
            f"{size / warm:.2f}",
            f"{size / bare:.2f}",
        )
        print(" ".join(f"{cell:>15}" for cell in (*cells, f"{bare / warm:.0%}")))


if __name__ == "__main__":
    main()
