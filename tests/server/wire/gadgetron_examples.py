"""Messages between Gadgetron and a node for the tests of the wire: generated ones, and a writer of buckets."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
from hypothesis import strategies as st

from pipelines.gadgetron import SAMPLING_DESCRIPTION, STATISTICS, Bucket, ImageArray, ReconBit, ReconBuffer, ReconData
from pipelines.mrd import ACQUISITION_HEADER, IMAGE_HEADER, Acquisitions, Waveform
from server.wire.messages import Close, ConfigText, Event, PeerError, Query, Response
from tests.server.wire.examples import acquisitions, data_messages, headers, noise, u64, waveforms, words

small = st.integers(1, 3)


@st.composite
def recon_buffers(draw: st.DrawFn) -> ReconBuffer:
    loc, s, n, coils, z, y, x = (draw(small) for _ in range(7))
    seed = draw(st.integers(0, 2**32))
    dimensions = draw(st.integers(0, 2))
    sampling = np.zeros((), SAMPLING_DESCRIPTION)
    for number, name in enumerate(SAMPLING_DESCRIPTION.names or ()):
        dtype, _ = SAMPLING_DESCRIPTION.fields[name]
        sampling[name] = noise(seed + number, dtype.base, dtype.shape)
    return ReconBuffer(
        noise(seed, np.dtype("<c8"), (loc, s, n, coils, z, y, x)),
        noise(seed + 1, ACQUISITION_HEADER, (loc, s, n, z, y)),
        sampling,
        noise(seed + 2, np.dtype("<f4"), (loc, s, n, z, y, x, dimensions)) if dimensions else None,
        noise(seed + 3, np.dtype("<f4"), (loc, s, n, z, y, x)) if draw(st.booleans()) else None,
    )


recon_data = st.lists(st.builds(ReconBit, recon_buffers(), st.none() | recon_buffers()), max_size=2).map(
    lambda bits: ReconData(tuple(bits))
)


@st.composite
def image_arrays(draw: st.DrawFn) -> ImageArray:
    loc, s, n, channels, z, y, x = (draw(small) for _ in range(7))
    seed = draw(st.integers(0, 2**32))
    xml = st.text(st.characters(codec="ascii"), max_size=20).map(str.encode)
    n_meta = draw(st.sampled_from([0, loc * s * n]))
    waves = draw(st.none() | st.lists(plain_waveforms, max_size=2).map(tuple))
    return ImageArray(
        noise(seed, np.dtype("<c8"), (loc, s, n, channels, z, y, x)),
        noise(seed + 1, IMAGE_HEADER, (loc, s, n)),
        tuple(draw(st.lists(xml, min_size=n_meta, max_size=n_meta))),
        waves,
        noise(seed + 2, ACQUISITION_HEADER, (loc, s, n, z, y)) if draw(st.booleans()) else None,
    )


def _of_one_version(wave: Waveform) -> Waveform:
    """The format's version is 1; 1026 there would be taken for the id that the package writes in this place."""
    wave.header["version"] = 1
    return wave


plain_waveforms = waveforms().map(_of_one_version)

counter_values = st.sets(st.integers(0, 65535), max_size=4).map(lambda values: tuple(sorted(values)))
statistics = st.lists(st.fixed_dictionaries(dict.fromkeys(STATISTICS, counter_values)), max_size=2).map(tuple)


def merged(runs: Iterable[Acquisitions]) -> tuple[Acquisitions, ...]:
    """Neighbours of one shape as one run, as they are read."""
    found: list[Acquisitions] = []
    for run in runs:
        before = found[-1] if found else None
        if before is not None and _shape(before) == _shape(run):
            track = None if run.trajectory is None else np.concatenate([before.trajectory, run.trajectory])
            run = Acquisitions(
                np.concatenate([before.headers, run.headers]), np.concatenate([before.samples, run.samples]), track
            )
            found.pop()
        found.append(run)
    return tuple(found)


def _shape(run: Acquisitions) -> tuple[int, ...]:
    return run.n_samples, run.n_coils, int(run.headers["trajectory_dimensions"][0])


@st.composite
def buckets(draw: st.DrawFn) -> Bucket:
    runs = st.lists(acquisitions(most=3), max_size=3).map(merged)
    waves = st.lists(waveforms(), max_size=2).map(tuple)
    return Bucket(draw(runs), draw(runs), draw(statistics), draw(statistics), draw(waves))


@st.composite
def parent_requests(draw: st.DrawFn) -> list[Event]:
    """All that Gadgetron may say to a node, in an order that is allowed."""
    texts = st.lists(st.builds(Query, u64, words), max_size=1)
    data = st.lists(st.one_of(data_messages, node_messages, st.builds(Query, u64, words)), max_size=5)
    config = draw(st.builds(ConfigText, words))
    return [*draw(texts), config, *draw(texts), draw(headers), *draw(data), Close()]


node_messages = st.one_of(recon_data, image_arrays(), buckets())
node_replies = st.lists(
    st.one_of(data_messages, node_messages, st.builds(Response, u64, words), st.builds(PeerError, words)), max_size=5
).map(lambda events: [*events, Close()])
"""All that a node may say."""


def bucket_bytes(
    data: Sequence[tuple[bytes, bytes, bytes]],
    reference: Sequence[tuple[bytes, bytes, bytes]] = (),
    statistics: tuple[Sequence[Sequence[Sequence[int]]], ...] = ((), ()),
    waves: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A bucket as Gadgetron's writer lays it out, written from the description of its C++ structures alone.

    Args:
        data: header, trajectory and samples of each readout.
        reference: the same of the calibration.
        statistics: of both, for each encoding space nine sets of counters.
        waves: header and samples of each waveform.
    """
    blocks = [
        struct.pack("<Q", len(spaces))
        + b"".join(struct.pack(f"<Q{len(one)}H", len(one), *one) for space in spaces for one in space)
        for spaces in statistics
    ]
    meta: list[int] = []
    body = b""
    for half, block in zip((data, reference), blocks, strict=True):
        header_block, track_block, sample_block = (
            b"".join(part) for part in (zip(*half, strict=True) if half else ((),) * 3)
        )
        meta += [len(half), len(header_block), len(sample_block), len(track_block)]
        body += header_block + track_block + sample_block + block
    wave_headers, wave_samples = (b"".join(part) for part in (zip(*waves, strict=True) if waves else ((),) * 2))
    meta += [len(blocks[0]), len(blocks[1]), len(waves), len(wave_headers), len(wave_samples)]
    return struct.pack("<H13Q", 1050, *meta) + body + wave_headers + wave_samples
