"""Noise measured in a session of its own, through a real server process with real workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.mrd import AcquisitionFlag, Acquisitions, flagged
from pipelines.simulate import SimulatedScan
from server.client import Client

ID = b"<measurementID>simulated_1_1_1</measurementID>"
DEPENDENCY = (
    b"<measurementDependency><dependencyType>Noise</dependencyType><measurementID>%s</measurementID>"
    b"</measurementDependency>"
)


def parts(scan: SimulatedScan) -> tuple[list[Acquisitions], list[Acquisitions]]:
    """The noise readouts and all others."""
    is_noise = [flagged(batch.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT).all() for batch in scan.batches]
    noise = [batch for batch, is_it in zip(scan.batches, is_noise, strict=True) if is_it]
    return noise, [batch for batch, is_it in zip(scan.batches, is_noise, strict=True) if not is_it]


async def send(server: Any, config: str, header: bytes, batches: list[Acquisitions]) -> Any:
    async with Client("127.0.0.1", server.port) as client:
        return await client.send_scan(config, header, batches)


def named(scan: SimulatedScan, name: bytes, depends_on: bytes = b"") -> bytes:
    more = DEPENDENCY % depends_on if depends_on else b""
    return scan.header.replace(ID, b"<measurementID>" + name + b"</measurementID>" + more)


@pytest.mark.parametrize("pipeline", ["zero_filled", "sense"])
async def test_a_noise_session_before_the_scan_gives_the_images_of_noise_readouts_inside(
    running: Any, scan: SimulatedScan, pipeline: str
):
    noise, rest = parts(scan)
    name = b"qwertz_" + pipeline.encode()  # no digits: those of a port or a time would be found in the log by chance
    inside = await send(running, pipeline, scan.header, scan.batches)
    kept = await send(running, "default_measurement_dependencies.xml", named(scan, name), noise)
    before = await send(running, pipeline, named(scan, b"scan", name), rest)

    assert kept.closed
    assert not kept.images
    assert kept.texts[0].startswith("noise measurement kept: 4 channels")
    assert not before.texts
    assert len(before.images) == len(inside.images) == 8
    for got, wanted in zip(before.images, inside.images, strict=True):
        np.testing.assert_array_equal(got.pixels, wanted.pixels)
        assert (got.meta["ReconNoise"], wanted.meta["ReconNoise"]) == (["dependency"], ["measured"])
    assert "qwertz" not in running.log()


async def test_a_scan_whose_noise_is_missing_gives_images_and_says_so(running: Any, scan: SimulatedScan):
    reply = await send(running, "zero_filled", named(scan, b"scan", b"not_here"), parts(scan)[1])

    assert len(reply.images) == 8
    assert {tuple(image.meta["ReconNoise"]) for image in reply.images} == {("estimated",)}
    assert [text for text in reply.texts if "depends on" in text]


async def test_noise_is_in_its_directory_after_a_restart(
    start_server: Callable[..., Any], scan: SimulatedScan, tmp_path: Path
):
    directory = tmp_path / "noise"
    for config, header, batches, n_images in (
        ("default_measurement_dependencies", named(scan, b"a_1"), parts(scan)[0], 0),
        ("zero_filled", named(scan, b"b_1", b"a_1"), parts(scan)[1], 8),
    ):
        server = start_server(f"noise.directory={directory}")
        try:
            server.wait_until_ready()
            reply = await send(server, config, header, batches)
            records = [json.loads(line) for line in server.log().splitlines()]
        finally:
            assert server.stop() == 0
        assert len(reply.images) == n_images
        assert not any(text.startswith(("WRN", "ERROR")) for text in reply.texts)
        event = "noise_taken" if n_images else "noise_kept"
        (record,) = [record for record in records if record["event"] == event]
        assert (record["channels"], record["dwell_us"]) == (4, 7.5)
    assert {tuple(image.meta["ReconNoise"]) for image in reply.images} == {("dependency",)}
