"""One scan from a stream through a pipeline into a stream, as `gadgetron --from_stream` does it.

    events -> selection, intake (as in a session) -> groups -> executor -> images -> sink

Reading waits while a group is reconstructed, so no more is held than the groups that are open and the messages of one
piece of input. The end says what happened: images as they are done, then CLOSE; after an error the images that were
complete, the error as TEXT, and no CLOSE, so that nobody takes the output for whole.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.assembly.frame import Group
from pipelines.errors import HeaderError, PipelineError
from pipelines.gadgetron import Bucket, ImageArray, ReconData
from pipelines.image_group import ImageGroup
from pipelines.mrd import Acquisitions, Image, Waveform
from pipelines.registry import PipelineEntry
from pipelines.scaling import SeriesScaler
from server.config import Settings
from server.errors import ClientError, OutputClosedError, ProtocolError, ServerError
from server.execution.executor import Executor, Job
from server.header_reading import read_header, scaler_for, takes_images
from server.intake import Intake, NothingIntake, intake_for
from server.logs import printable
from server.metrics import product_version
from server.noise_desk import NoiseDesk
from server.noise_store import NoiseStore
from server.outcome import TEXT_LENGTH, error_text
from server.selection import Selection, refine, select
from server.streams import ImageSink
from server.wire.messages import (
    Close,
    ConfigFile,
    ConfigText,
    DependencyAnswer,
    Event,
    Header,
    PeerError,
    Query,
    Response,
    Text,
)


@dataclass(slots=True)
class Tally:
    """How much came and went."""

    acquisitions: int = 0
    waveforms: int = 0
    images_in: int = 0
    groups: int = 0
    images: int = 0

    @property
    def has_data(self) -> bool:
        """Whether anything came that is not text."""
        return bool(self.acquisitions or self.waveforms or self.images_in)


class StreamRecon:
    """One scan.

    Attributes:
        tally: how much came and went so far.
    """

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        loop: asyncio.Runner,
        sink: ImageSink,
        warn: Callable[[str], None],
        *,
        pipeline: str | None = None,
        parameters: Mapping[str, object] | None = None,
    ) -> None:
        """Get ready for a scan.

        Args:
            settings: pipelines and limits.
            executor: where groups are reconstructed; started.
            loop: where its coroutines run.
            sink: where images go.
            warn: told each sentence once; they are not part of the output.
            pipeline: pipeline or alias; wins over what the stream says, which wins over the default of the settings.
            parameters: of whichever pipeline is chosen.

        Raises:
            UnknownPipelineError: no such pipeline.
            ParameterError: one of the parameters does not fit.
        """
        self.tally = Tally()
        self._session = secrets.token_hex(8)
        self._noise = NoiseDesk(_noise_store(settings), self._session, self._answer)
        self._settings = settings
        self._executor = executor
        self._loop = loop
        self._sink = sink
        self._tell = warn
        self._told: set[str] = set()
        self._parameters = dict(parameters or {})
        self._is_chosen = pipeline is not None
        # Without a name the stream may still choose, up to its header; parameters may fit only what it chooses.
        self._selection: Selection | None = None if pipeline is None else self._select(pipeline)
        self._xml: bytes | None = None
        self._header_error: HeaderError | None = None
        self._intake: Intake = NothingIntake()
        self._scaler: SeriesScaler | None = None

    def run(self, events: Iterable[Event]) -> Tally:
        """Reconstruct the scan and write its images.

        Raises:
            ServerError, PipelineError: what ended it early; the sink has been told.
        """
        try:
            for event in events:
                self._handle(event)
            self._check_result()
            self._sink.close()
        except OutputClosedError:
            raise
        except Exception as error:
            self._end_badly(error)
            raise
        finally:
            self._intake.abandon()
        return self.tally

    def _end_badly(self, error: Exception) -> None:
        """Write what was complete, then why there is no more."""
        with suppress(OutputClosedError):
            try:
                # The readouts that came together with the bad one may have completed groups.
                self._reconstruct(self._intake.take_ready())
            except (ServerError, PipelineError) as later:
                self._warn(str(later))
            self._sink.text(error_text(error))

    def _handle(self, event: Event) -> None:
        if self._header_error is not None and not isinstance(event, Text):
            raise self._header_error
        match event:
            case Acquisitions():
                self._require_header("readouts")
                self.tally.acquisitions += len(event)
                self._reconstruct(self._intake.acquisitions(event))
            case Waveform():
                self._require_header("waveforms")
                self.tally.waveforms += 1
                self._intake.waveform(event)
            case Image():
                self._take_image(event)
            case ConfigFile(name) | ConfigText(name):
                self._take_configuration(name)
            case Header(xml):
                self._xml = xml
                self._begin_intake()
                self._sink.header(xml)
            case Text():
                self._take_text(event)
            case Close():
                self._take_close(event)
            case PeerError(text):
                raise ProtocolError(f"the input says that its writer failed: {printable(text, TEXT_LENGTH)}")
            case Query() | Response() | DependencyAnswer():
                self._warn("a query or response in the input is left out: a stream has nobody to answer")
            case Bucket() | ReconData() | ImageArray():
                raise ProtocolError("what only Gadgetron says to its nodes cannot come in a stream")

    def _require_header(self, what: str) -> None:
        if self._xml is None:
            raise ProtocolError(f"{what} came before a scan header, which a reconstruction needs first")

    def _take_image(self, image: Image) -> None:
        if self._xml is None and not self.tally.images_in:
            # Images need no header, where the pipeline is one for images.
            self._begin_intake()
            if self._entry is not None and not self._entry.takes_images:
                self._require_header("images")
        self.tally.images_in += 1
        self._reconstruct(self._intake.image(image))

    def _select(self, text: str) -> Selection:
        return self._with_parameters(select(text, self._settings.pipelines))

    def _with_parameters(self, selection: Selection) -> Selection:
        if not self._parameters:
            return selection
        text = json.dumps({"parameters": self._parameters})
        refined = refine(text, selection, self._settings.pipelines)
        return replace(refined, warnings=selection.warnings + refined.warnings)

    def _take_configuration(self, text: str) -> None:
        if self._is_chosen:
            self._warn("the configuration in the input is left out: the command line names a pipeline")
            return
        self._choose(self._select(text))

    def _choose(self, selection: Selection) -> None:
        self._selection = selection
        for warning in selection.warnings:
            self._warn(warning)
        if not selection.needs_header:
            self._begin_intake()

    def _answer(self, answer: Text | DependencyAnswer) -> None:
        """Say what became of a noise measurement; a stream has nobody who waits for it."""
        if isinstance(answer, Text):
            self._tell(answer.text)
        else:
            self._tell("; ".join(f"{name}: {', '.join(values)}" for name, values in answer.meta.items()))

    @property
    def _entry(self) -> PipelineEntry | None:
        return None if self._selection is None else self._selection.entry

    def _begin_intake(self) -> None:
        """Choose where data go, by the same rules as a session; an impossible header fails here."""
        if self._selection is None:
            self._choose(self._select(self._settings.pipelines.default))
        self._intake, self._scaler, self._header_error = NothingIntake(), None, None
        selection = self._selection
        if selection is None or (selection.needs_header and self._xml is None and not takes_images(selection)):
            return
        reading = read_header(self._xml, selection, self._settings)
        if reading.warning:
            self._warn(reading.warning)
        self._header_error = reading.error
        if reading.error is not None:
            return
        self._scaler = scaler_for(reading.scan, selection, self._settings)
        limits = self._settings.limits.for_assembly()
        self._intake = intake_for(selection, reading.scan, self._executor.slots, limits, self._noise)

    def _take_text(self, event: Text) -> None:
        if not event.text.lstrip().startswith("{"):
            self._sink.text(event.text)
        elif self._is_chosen:
            self._warn("the configuration in the input is left out: the command line names a pipeline")
        elif self._selection is not None and self._xml is not None and not self.tally.has_data:
            self._choose(self._with_parameters(refine(event.text, self._selection, self._settings.pipelines)))
            self._begin_intake()
        else:
            self._warn("a JSON configuration is read only right behind the header, before the first data; ignored")

    def _take_close(self, event: Close) -> None:
        needs_header = self._selection is None or self._selection.needs_header
        if needs_header and self._xml is None and not self.tally.images_in:
            raise ProtocolError(
                "the input ended before a scan header came",
                kind="truncated",
                advice="Give a stream of MRD version 1; `echotrain convert scan.h5 -` makes one from a file.",
            )
        if not event.announced:
            self._warn("the input ended without CLOSE; taken as the end of the scan")
        self._reconstruct(self._intake.finish())

    def _check_result(self) -> None:
        if self._entry is not None and not self.tally.images:
            came = f"{self.tally.acquisitions} readouts and {self.tally.images_in} images came"
            raise ClientError(
                f"{came}, but nothing to make an image of",
                advice="Look at the scan with `echotrain inspect`.",
            )

    def _reconstruct(self, groups: Sequence[Group | ImageGroup]) -> None:
        """Reconstruct groups in order and write their images at once; the memory of all is given back."""
        for warning in self._intake.take_warnings():
            self._warn(warning)
        try:
            for group in groups:
                self._reconstruct_group(group)
        finally:
            for group in groups:
                group.release()

    def _reconstruct_group(self, group: Group | ImageGroup) -> None:
        if self._selection is None or self._selection.entry is None:
            return
        self.tally.groups += 1
        provenance = {"ReconSoftwareVersion": product_version(), "ReconSession": self._session}
        job = Job(self._session, self._selection.entry.name, self._selection.parameters, group, provenance)
        result = self._loop.run(self._executor.run(job))
        group.release()
        for warning in result.warnings:
            self._warn(warning)
        for image in result.images:
            self._sink.image(self._in_stored_units(image))
            self.tally.images += 1

    def _in_stored_units(self, image: Image) -> Image:
        if self._scaler is None:
            return image
        stored = self._scaler(image)
        for warning in self._scaler.take_warnings():
            self._warn(warning)
        return stored

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(printable(text, TEXT_LENGTH))


def _noise_store(settings: Settings) -> NoiseStore:
    """Where noise of earlier scans lies: with a directory in the settings, that of the server and of other commands."""
    noise = settings.noise
    directory = Path(noise.directory) if noise.directory else None
    return NoiseStore(directory, expiry_s=noise.expiry_s, most_entries=noise.entries)
