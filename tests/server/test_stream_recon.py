"""One scan from a stream into a stream, with an executor that does what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import HeaderError, ParameterError, ReconstructionError, UnknownPipelineError
from pipelines.mrd import Acquisitions, Image
from pipelines.simulate import SimulatedScan
from server.config import load
from server.errors import ClientError, OutputClosedError, ProtocolError
from server.stream_recon import StreamRecon
from server.wire.messages import Close, ConfigFile, ConfigText, Event, Header, PeerError, Query, Text
from tests.server.conftest import FakeExecutor
from tests.server.wire import examples


class Sink:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    @property
    def images(self) -> list[Image]:
        return [entry for entry in self.said if isinstance(entry, Image)]

    def header(self, xml: bytes) -> None:
        self.said.append(xml)

    def image(self, image: Image) -> None:
        self.said.append(image)

    def text(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        self.said.append("CLOSE")


class Bench:
    """What a test needs of a reconstruction."""

    def __init__(self, loop: asyncio.Runner) -> None:
        self.loop = loop
        self.executor = FakeExecutor()
        self.executor.gate.set()
        self.sink = Sink()
        self.warnings: list[str] = []

    def run(self, events: Iterable[Event], pipeline: str | None = None, sink: Any = None, **settings: object) -> None:
        parameters = settings.pop("parameters", None)
        flags = {name.replace("__", "."): value for name, value in settings.items()}
        loaded = load(flags={"pipelines.default": "zero_filled", **flags}, environment={}).settings
        recon = StreamRecon(
            loaded, self.executor, self.loop, sink or self.sink, self.warnings.append,
            pipeline=pipeline, parameters=parameters,  # type: ignore[arg-type]
        )  # fmt: skip
        recon.run(events)

    @property
    def jobs(self) -> list[Any]:
        return self.executor.jobs


@pytest.fixture
def bench() -> Iterator[Bench]:
    with asyncio.Runner() as loop:
        bench = Bench(loop)
        yield bench
        assert not bench.executor.slots.taken


def events(scan: SimulatedScan, *before: Event) -> Iterator[Event]:
    yield from before
    yield Header(scan.header)
    yield from scan.batches
    yield Close()


def test_the_output_is_the_header_the_images_and_close(bench: Bench, small_scan: SimulatedScan) -> None:
    bench.run(events(small_scan))

    assert bench.sink.said[0] == small_scan.header
    assert bench.sink.said[-1] == "CLOSE"
    assert len(bench.sink.images) == len(bench.sink.said) - 2 == 2 * len(bench.jobs) == 24
    assert [int(image.header["image_index"]) for image in bench.sink.images[::2]] == list(range(12))


def test_images_are_written_before_more_is_read(bench: Bench, small_scan: SimulatedScan) -> None:
    written: list[int] = []

    def watched() -> Iterator[Event]:
        for batch in small_scan.batches:
            for number in range(len(batch)):
                written.append(len(bench.sink.images))
                yield Acquisitions(batch.headers[number : number + 1], batch.samples[number : number + 1])

    bench.run(chain([Header(small_scan.header)], watched(), [Close()]))

    # Between a complete group and its images no further readout is read.
    assert sorted(set(written)) == list(range(0, 24, 2))


def test_no_more_than_the_open_groups_is_held(bench: Bench, small_scan: SimulatedScan) -> None:
    held: list[int] = []

    class Watching(Sink):
        def image(self, _: Image) -> None:
            held.append(len(bench.executor.slots.taken))

    bench.run(events(small_scan), sink=Watching())
    assert max(held) <= 1


@pytest.mark.parametrize("message", [ConfigFile("sense"), ConfigText('{"pipeline": "sense"}')])
def test_the_configuration_of_the_stream_chooses(bench: Bench, small_scan: SimulatedScan, message: Event) -> None:
    bench.run(events(small_scan, message))
    assert {job.pipeline for job in bench.jobs} == {"sense"}


def test_the_command_line_wins_over_the_stream_and_says_so(bench: Bench, small_scan: SimulatedScan) -> None:
    bench.run(events(small_scan, ConfigFile("no such thing")), pipeline="sense")
    assert {job.pipeline for job in bench.jobs} == {"sense"}
    assert bench.warnings == ["the configuration in the input is left out: the command line names a pipeline"]


def test_parameters_go_to_whichever_pipeline_is_chosen(bench: Bench, small_scan: SimulatedScan) -> None:
    bench.run(events(small_scan, ConfigText('{"pipeline": "sense", "parameters": {"iterations": 5}}')),
              parameters={"iterations": "7"})  # fmt: skip
    assert {job.parameters["iterations"] for job in bench.jobs} == {7}


def test_json_behind_the_header_refines(bench: Bench, small_scan: SimulatedScan) -> None:
    def all_of_it() -> Iterator[Event]:
        yield Header(small_scan.header)
        yield Text('{"parameters": {"config": "sense", "iterations": "3"}}')
        yield from small_scan.batches
        yield Text('{"parameters": {"config": "zero_filled"}}')
        yield Close()

    bench.run(all_of_it())
    assert {(job.pipeline, job.parameters["iterations"]) for job in bench.jobs} == {("sense", 3)}
    assert [warning for warning in bench.warnings if "only right behind the header" in warning]


def test_the_null_configuration_takes_everything_and_gives_no_image(bench: Bench, small_scan: SimulatedScan) -> None:
    bench.run(events(small_scan, ConfigFile("null")))
    assert bench.sink.said == [small_scan.header, "CLOSE"]


def test_a_noise_measurement_is_kept_where_other_commands_find_it(
    bench: Bench, small_scan: SimulatedScan, tmp_path: Path
) -> None:
    flags = {"noise__directory": str(tmp_path / "noise")}
    bench.run(events(small_scan, ConfigFile("default_measurement_dependencies")), **flags)
    assert bench.sink.said == [small_scan.header, "CLOSE"]
    assert any(sentence.startswith("noise measurement kept: 2 channels") for sentence in bench.warnings)
    assert len(list((tmp_path / "noise").glob("*.npz"))) == 1


def test_texts_are_passed_on(bench: Bench, small_scan: SimulatedScan) -> None:
    bench.run(events(small_scan, Text("DBG first")))
    assert bench.sink.said[:2] == ["DBG first", small_scan.header]


def test_the_end_without_close_is_the_end_of_the_scan(bench: Bench, small_scan: SimulatedScan) -> None:
    bench.run([Header(small_scan.header), *small_scan.batches, Close(announced=False)])
    assert len(bench.sink.images) == 24
    assert bench.warnings == ["the input ended without CLOSE; taken as the end of the scan"]


def test_integer_pixels_carry_their_scale(bench: Bench, small_scan: SimulatedScan) -> None:
    bench.run(events(small_scan), emission__pixels="uint16")
    magnitude, deviation = bench.sink.images[2:4]
    assert magnitude.pixels.dtype == np.uint16
    assert deviation.pixels.dtype == np.float32
    assert magnitude.meta["RescaleSlope"] == deviation.meta["RescaleSlope"]


def test_what_was_complete_before_an_error_is_written_then_the_error_and_no_close(
    bench: Bench, small_scan: SimulatedScan
) -> None:
    def broken() -> Iterator[Event]:
        yield Header(small_scan.header)
        yield from small_scan.batches[:-1]
        raise ProtocolError("the peer ended its stream inside a message", kind="truncated")

    with pytest.raises(ProtocolError, match="inside a message"):
        bench.run(broken())

    assert len(bench.sink.images) == 2 * len(bench.jobs)
    assert bench.sink.said[-1].startswith("ERROR protocol: the peer ended its stream inside a message. ")
    assert "CLOSE" not in bench.sink.said


def test_a_failing_reconstruction_ends_the_output_with_its_code(bench: Bench, small_scan: SimulatedScan) -> None:
    bench.executor.failures[3] = ReconstructionError("slice 0 holds no data")
    with pytest.raises(ReconstructionError):
        bench.run(events(small_scan))
    assert len(bench.sink.images) == 6
    assert bench.sink.said[-1].startswith("ERROR reconstruction_failed: slice 0 holds no data.")


def test_nothing_is_said_to_a_reader_that_has_gone(bench: Bench, small_scan: SimulatedScan) -> None:
    class Gone(Sink):
        def image(self, _: Image) -> None:
            raise OutputClosedError("gone")

        def text(self, _: str) -> None:
            raise AssertionError("nobody listens")

    with pytest.raises(OutputClosedError):
        bench.run(events(small_scan), sink=Gone())
    assert len(bench.jobs) == 1


@pytest.mark.parametrize(
    ("stream", "kind", "said"),
    [
        ([Close(announced=False)], ProtocolError, "before a scan header"),
        ([examples.readouts()], ProtocolError, "readouts came before a scan header"),
        ([examples.waveform()], ProtocolError, "waveforms came before a scan header"),
        ([examples.image()], ProtocolError, "images came before a scan header"),
        ([Header(b"<ismrmrdHeader/>")], HeaderError, "encoding"),
        ([ConfigFile("no_such_pipeline")], UnknownPipelineError, "no_such_pipeline"),
        ([ConfigText('{"parameters": {"nonsense": 1}}')], ParameterError, "nonsense"),
        ([PeerError("my disk is full")], ProtocolError, "my disk is full"),
    ],
)
def test_bad_streams_get_one_error(bench: Bench, stream: list[Event], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        bench.run(stream)
    assert bench.sink.said[-1].startswith("ERROR ")
    assert len(bench.sink.said) == 1


def test_a_scan_without_an_image_is_an_error(bench: Bench, small_scan: SimulatedScan) -> None:
    with pytest.raises(ClientError, match="nothing to make an image of") as caught:
        bench.run([Header(small_scan.header), Close()])
    assert caught.value.code == "no_images"
    assert "CLOSE" not in bench.sink.said


@pytest.mark.parametrize("before", [[], [Header(b"Dummy XML header")]])
def test_images_go_through_a_pipeline_for_images_with_or_without_a_header(bench: Bench, before: list[Event]) -> None:
    bench.run([*before, examples.image(), examples.image(), Close()], pipeline="pass_through")
    assert len(bench.jobs) == 2
    assert len(bench.sink.images) == 4
    assert bench.sink.said[-1] == "CLOSE"


def test_json_behind_a_sentence_may_choose_a_pipeline_for_images(bench: Bench) -> None:
    chosen = Text('{"parameters": {"config": "pass_through"}}')
    bench.run([Header(b"Dummy XML header"), chosen, examples.image(), Close()])
    assert {job.pipeline for job in bench.jobs} == {"pass_through"}


def test_a_sentence_for_a_header_ends_a_scan_of_readouts(bench: Bench) -> None:
    with pytest.raises(HeaderError, match="not XML"):
        bench.run([Header(b"Dummy XML header"), examples.readouts(), Close()])
    assert bench.sink.said[-1].startswith("ERROR bad_header: ")


def test_readouts_for_a_pipeline_for_images_are_refused(bench: Bench, small_scan: SimulatedScan) -> None:
    with pytest.raises(ProtocolError, match="takes images"):
        bench.run(events(small_scan), pipeline="pass_through")


def test_a_query_is_left_out_with_a_word(bench: Bench, small_scan: SimulatedScan) -> None:
    bench.run(events(small_scan, Query(1, "gadgetron::info"), Query(2, "again")))
    assert len(bench.warnings) == 1


@pytest.mark.parametrize(("pipeline", "parameters"), [("no_such", {}), ("sense", {"iterations": "many"})])
def test_a_wrong_choice_is_refused_before_anything_is_read(
    bench: Bench, pipeline: str, parameters: dict[str, object]
) -> None:
    def never() -> Iterator[Event]:
        raise AssertionError("read")
        yield

    with pytest.raises((UnknownPipelineError, ParameterError)):
        bench.run(never(), pipeline=pipeline, parameters=parameters)
    assert bench.sink.said == []
