"""Noise as a session of its own, over a real socket: what is kept, which scan gets it, and what is said about it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import ismrmrd
import numpy as np
import pytest

from pipelines.assembly.frame import NoiseSource
from pipelines.mrd import AcquisitionFlag, Acquisitions, flagged
from pipelines.phantom import head_phantom
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.client import Client
from server.wire.connection import Connection, Role
from server.wire.messages import Close, DependencyAnswer, Event, Text

CANARY = "CANARY_4711"
NAMES = ["/etc/passwd", "../../../x", "..", "a/b/../c", "%00", "x" * 10_000, "Ünïcödé 编号"]


def named(
    scan: SimulatedScan, measurement_id: str, *dependencies: tuple[str, str], coils: list[str] | None = None
) -> bytes:
    """The header of a scan under another id, with the scans that it depends on and other names of its coils."""
    xml = scan.header.decode().replace(
        "<measurementID>simulated_1_1_1</measurementID>",
        f"<measurementID>{escape(measurement_id)}</measurementID>"
        + "".join(
            f"<measurementDependency><dependencyType>{kind}</dependencyType>"
            f"<measurementID>{escape(name)}</measurementID></measurementDependency>"
            for kind, name in dependencies
        ),
    )
    for number, name in enumerate(coils or []):
        xml = xml.replace(f"<coilName>Birdcage{number + 1}</coilName>", f"<coilName>{name}</coilName>")
    return xml.encode()


def parts(scan: SimulatedScan) -> tuple[list[Acquisitions], list[Acquisitions]]:
    """The noise readouts and all others."""
    is_noise = [bool(flagged(batch.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT).all()) for batch in scan.batches]
    noise = [batch for batch, is_it in zip(scan.batches, is_noise, strict=True) if is_it]
    return noise, [batch for batch, is_it in zip(scan.batches, is_noise, strict=True) if not is_it]


async def send(server: Any, config: str, header: bytes, batches: list[Acquisitions]) -> Any:
    async with Client("127.0.0.1", server.port) as client:
        return await client.send_scan(config, header, batches)


async def measure(server: Any, scan: SimulatedScan, measurement_id: str = "noise_1", **changes: Any) -> Any:
    config = "default_measurement_dependencies.xml"
    return await send(server, config, named(scan, measurement_id, **changes), parts(scan)[0])


async def image(server: Any, scan: SimulatedScan, *dependencies: tuple[str, str], **changes: Any) -> Any:
    return await send(server, "zero_filled", named(scan, "scan_1", *dependencies, **changes), parts(scan)[1])


async def ask(server: Any, noise_file: str) -> list[Event]:
    """What a client of Gadgetron does before a scan: a chain with one gadget and CLOSE, no header."""
    config = f"""<?xml version="1.0" encoding="UTF-8"?>
        <gadgetronStreamConfiguration xmlns="http://gadgetron.sf.net/gadgetron">
        <writer><slot>1019</slot><dll>gadgetron_mricore</dll><classname>DependencyQueryWriter</classname></writer>
        <gadget><name>NoiseSummary</name><dll>gadgetron_mricore</dll><classname>NoiseSummaryGadget</classname>
        <property><name>noise_file</name><value>{escape(noise_file)}</value></property></gadget>
        </gadgetronStreamConfiguration>"""
    return await converse(server, lambda says: [*says.config_text(config), *says.close()])


async def converse(server: Any, say: Any) -> list[Event]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.writelines(say(Connection(Role.CLIENT)))
    connection, heard = Connection(Role.CLIENT), []
    while data := await asyncio.wait_for(reader.read(1 << 16), 10):
        connection.writable()[: len(data)] = data
        connection.received(len(data))
        while (event := connection.next_event()) is not None:
            heard.append(event)
    writer.close()
    await writer.wait_closed()
    return heard


async def test_a_noise_session_says_what_it_keeps_and_gives_no_images(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving()
    reply = await measure(server, small_scan, CANARY)
    assert reply.closed
    assert reply.images == executor.jobs == []
    assert reply.texts == ["noise measurement kept: 2 channels, 1024 samples, dwell time 7.5 us"]


@pytest.mark.parametrize("kind", ["Noise", "noise", "NOISE"])
async def test_a_scan_without_noise_readouts_gets_the_noise_it_depends_on(
    serving: Any, executor: Any, small_scan: SimulatedScan, kind: str
) -> None:
    server = await serving()
    await measure(server, small_scan)
    reply = await image(server, small_scan, ("SenMap", "other"), (kind, "noise_1"))
    samples = np.concatenate([batch.complex_samples() for batch in parts(small_scan)[0]])
    dense = np.moveaxis(samples, 1, 0).reshape(2, -1).astype(np.complex128)
    assert not reply.texts
    for job in executor.jobs:
        noise = job.group.noise
        np.testing.assert_allclose(noise.sums, dense @ dense.conj().T, rtol=1e-12)
        assert (noise.n_samples, noise.sample_time_us, noise.bandwidth) == (1024, 7.5, 0.793)
        assert noise.source is NoiseSource.DEPENDENCY


async def test_noise_readouts_of_the_scan_itself_win(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    server = await serving()
    other = simulate(head_phantom(1, 32, 32), Protocol(n_coils=2, noise_readouts=8, seed=9))
    await measure(server, other)
    reply = await send(server, "zero_filled", named(small_scan, "s", ("Noise", "noise_1")), small_scan.batches)
    assert not reply.texts
    assert {job.group.noise.source for job in executor.jobs} == {NoiseSource.MEASURED}
    assert {job.group.noise.n_samples for job in executor.jobs} == {1024}


async def test_noise_readouts_of_a_scan_serve_those_that_depend_on_it(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving()
    await send(server, "zero_filled", named(small_scan, "first"), small_scan.batches)
    n_before = len(executor.jobs)
    await image(server, small_scan, ("noise", "first"))
    assert {job.group.noise.source for job in executor.jobs[n_before:]} == {NoiseSource.DEPENDENCY}
    # Also when nothing but noise came.
    await send(server, "zero_filled", named(small_scan, "second"), parts(small_scan)[0])
    await image(server, small_scan, ("noise", "second"))
    assert executor.jobs[-1].group.noise.source is NoiseSource.DEPENDENCY


async def test_a_missing_dependency_is_a_warning_that_does_not_tell_which(
    serving: Any, executor: Any, small_scan: SimulatedScan, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await serving()
    reply = await image(server, small_scan, ("Noise", CANARY))
    (text,) = reply.texts
    assert text.startswith("WRN the noise measurement")
    assert len(reply.images) == 24
    assert all(job.group.noise is None for job in executor.jobs)
    written = capsys.readouterr()
    assert CANARY not in text + written.out + written.err


async def test_no_id_of_a_measurement_reaches_the_log_or_the_metrics(
    serving: Any, executor: Any, small_scan: SimulatedScan, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = await serving(noise__directory=str(tmp_path / "noise"))
    await measure(server, small_scan, CANARY)
    await image(server, small_scan, ("Noise", CANARY))
    await ask(server, f"GadgetronNoiseCovarianceMatrix_{CANARY}")
    written = capsys.readouterr()
    assert CANARY not in written.out + written.err + server.metrics.text().decode()
    for path in (tmp_path / "noise").iterdir():
        assert CANARY not in path.name
        assert CANARY.encode() not in path.read_bytes()


async def test_a_scan_that_depends_on_no_noise_gets_none(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving()
    await measure(server, small_scan, "noise_1")
    reply = await image(server, small_scan, ("SenMap", "noise_1"))
    assert not reply.texts
    assert executor.jobs[0].group.noise is None


async def test_the_second_dependency_is_taken_where_the_first_is_missing(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving()
    await measure(server, small_scan, "noise_2")
    reply = await image(server, small_scan, ("noise", "noise_1"), ("noise", "noise_2"))
    assert not reply.texts
    assert executor.jobs[0].group.noise is not None


@pytest.mark.parametrize(
    ("parameters", "is_used"),
    [({}, True), ({"whiten": "False"}, False), ({"noise_level": "1.414"}, False)],
)
async def test_data_that_are_white_already_need_no_noise_measurement(
    serving: Any, executor: Any, small_scan: SimulatedScan, parameters: dict[str, str], is_used: bool
) -> None:
    server = await serving()
    await measure(server, small_scan)
    config = json.dumps({"pipeline": "zero_filled", "parameters": parameters})
    header = named(small_scan, "s", ("noise", "noise_1"))
    reply = await send(server, config, header, parts(small_scan)[1])
    assert not reply.texts
    assert (executor.jobs[0].group.noise is not None) == is_used
    reply = await send(server, config, named(small_scan, "s", ("noise", "missing")), parts(small_scan)[1])
    assert len(reply.texts) == int(is_used)


async def test_coils_in_another_order_are_put_in_order(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    server = await serving()
    await measure(server, small_scan, coils=["H1", "H2"])
    await image(server, small_scan, ("noise", "noise_1"), coils=["H1", "H2"])
    reply = await image(server, small_scan, ("noise", "noise_1"), coils=["H2", "H1"])
    assert not reply.texts
    np.testing.assert_array_equal(executor.jobs[-1].group.noise.sums, executor.jobs[0].group.noise.sums[::-1, ::-1])


async def test_other_coils_are_used_with_a_warning(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    server = await serving()
    await measure(server, small_scan, coils=["H1", "H2"])
    (text,) = (await image(server, small_scan, ("noise", "noise_1"), coils=["S1", "S2"])).texts
    assert "coil labels" in text
    assert executor.jobs[0].group.noise is not None


async def test_noise_of_another_number_of_coils_is_not_used(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving()
    await measure(server, simulate(head_phantom(1, 32, 32), Protocol(n_coils=3, noise_readouts=4)))
    reply = await image(server, small_scan, ("noise", "noise_1"))
    assert any("3 coils and the scan 2" in text for text in reply.texts)
    assert len(reply.images) == 24
    assert all(job.group.noise is None for job in executor.jobs)


async def test_a_noise_session_without_noise_or_without_an_id_keeps_nothing_and_says_so(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving()
    config = "default_measurement_dependencies"
    reply = await send(server, config, named(small_scan, "a"), parts(small_scan)[1])
    assert any("no usable noise readout" in text for text in reply.texts)
    assert any("without the noise flag" in text for text in reply.texts)
    (text,) = (await send(server, config, named(small_scan, ""), parts(small_scan)[0])).texts
    assert "measurementID" in text
    assert len(server._noise) == 0
    assert executor.jobs == []


@pytest.mark.parametrize("name", NAMES)
async def test_hostile_ids_are_only_names(
    serving: Any, executor: Any, small_scan: SimulatedScan, tmp_path: Path, name: str
) -> None:
    server = await serving(noise__directory=str(tmp_path / "a" / "noise"))
    for measurement_id in (name, name + "y"):  # two that differ at their very end
        await measure(server, small_scan, measurement_id)
    await image(server, small_scan, ("noise", name))
    assert executor.jobs[0].group.noise is not None
    answer, _ = await ask(server, f"GadgetronNoiseCovarianceMatrix_{name}")
    assert answer.meta["status"] == ["success"]
    answer, _ = await ask(server, name + "z")
    assert answer.meta["status"] == ["failed"]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"noise"}
    assert len(list((tmp_path / "a" / "noise").glob("*.npz"))) == 2


async def test_a_nul_in_an_id_is_a_malformed_header(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    server = await serving()
    header = named(small_scan, "a").replace(b">a<", b">a\0b<")
    (text,) = (await send(server, "default_measurement_dependencies", header, parts(small_scan)[0])).texts
    assert text.startswith("ERROR bad_header")


async def test_noise_outlives_the_server_in_its_directory_and_not_its_expiry(
    serving: Any, executor: Any, small_scan: SimulatedScan, tmp_path: Path
) -> None:
    settings = {"noise__directory": str(tmp_path / "noise"), "noise__expiry_s": 60}
    first = await serving(**settings)
    await measure(first, small_scan)
    await first.stop(0)
    executor.stopped = False
    server = await serving(**settings)
    assert not (await image(server, small_scan, ("noise", "noise_1"))).texts
    now = server._noise._clock()
    server._noise._clock = lambda: now + 61
    (text,) = (await image(server, small_scan, ("noise", "noise_1"))).texts
    assert "not here" in text
    assert list((tmp_path / "noise").glob("*.npz")) == []
    await server.stop(0)


async def test_a_directory_that_fails_is_a_warning_and_a_metric(
    serving: Any, executor: Any, small_scan: SimulatedScan, tmp_path: Path
) -> None:
    server = await serving(noise__directory=str(tmp_path / "noise"))
    (tmp_path / "noise" / "salt").unlink()
    (tmp_path / "noise").rmdir()
    reply = await measure(server, small_scan)
    assert any(text.startswith("WRN the noise measurement could not be saved") for text in reply.texts)
    failures = server.metrics.registry.get_sample_value("echotrain_noise_store_failures_total", {"operation": "write"})
    assert failures == 1
    assert not (await image(server, small_scan, ("noise", "noise_1"))).texts


# ---- Gadgetron's question


async def test_gadgetrons_question_is_answered_as_gadgetron_does(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving()
    await measure(server, small_scan, "45387_1_2_74")
    answer, close = await ask(server, "GadgetronNoiseCovarianceMatrix_45387_1_2_74")
    assert isinstance(answer, DependencyAnswer)
    assert close == Close()
    samples = np.concatenate([batch.complex_samples() for batch in parts(small_scan)[0]])
    sigmas = np.sqrt((np.abs(samples.astype(np.complex128)) ** 2).sum((0, 2)) / 1023)
    assert answer.meta["status"] == ["success"]
    assert answer.meta["channels"] == ["2"]
    found = [float(answer.meta[name][0]) for name in ("min_sigma", "max_sigma", "mean_sigma", "noise_dwell_time_us")]
    np.testing.assert_allclose(found, [sigmas.min(), sigmas.max(), sigmas.mean(), 7.5], rtol=1e-6)


@pytest.mark.parametrize("noise_file", ["GadgetronNoiseCovarianceMatrix_1_2_3", "", "GadgetronNoiseCovarianceMatrix_"])
async def test_a_question_for_noise_that_is_not_here_fails(serving: Any, executor: Any, noise_file: str) -> None:
    answer, close = await ask(await serving(), noise_file)
    assert answer == DependencyAnswer({"status": ["failed"]})
    assert close == Close()


async def test_ismrmrd_python_reads_the_answer(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    server = await serving()
    await measure(server, small_scan)
    answer, _ = await ask(server, "GadgetronNoiseCovarianceMatrix_noise_1")
    server_end = Connection(Role.SERVER)
    body = b"".join(server_end.dependency(answer.meta))[10:]
    assert body.endswith(b"\0")
    meta = ismrmrd.Meta.deserialize(body.rstrip(b"\0").decode())
    assert meta["status"] == "success"
    assert float(meta["noise_dwell_time_us"]) == 7.5


async def test_a_question_with_a_header_and_data_is_answered_at_close_too(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving()
    config = "<a><gadget><classname>NoiseSummaryGadget</classname></gadget></a>"

    def say(says: Connection) -> list[Any]:
        beginning = [*says.config_text(config), *says.header(small_scan.header), *says.text("hello")]
        data = [part for batch in small_scan.batches[:2] for part in says.acquisitions(batch)]
        return [*beginning, *data, *says.close()]

    heard = await converse(server, say)
    assert [type(event) for event in heard] == [DependencyAnswer, Close]
    assert not any(isinstance(event, Text) for event in heard)
