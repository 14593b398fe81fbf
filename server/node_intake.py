"""What a node of Gadgetron's does with what Gadgetron hands it: every kind of data on one road to the groups.

Readouts, buckets and recon data go through the same assembly as a scanner's readouts. Upstream gadgets may have removed
the readout oversampling, which the scan header does not tell: the first readout for an image does, and until it comes
everything else waits. Data behind Gadgetron's NoiseAdjust are white already (E|n|^2 = 2 in every coil) and come without
noise readouts; those that do come were not used, so they whiten as in any scan.

Waveforms, images that a pipeline for raw data does not take, and readouts that a pipeline for images does not take go
back to Gadgetron unchanged, as the package `gadgetron` does it: gadgets downstream may want them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.frame import Group
from pipelines.assembly.gadgetron import bucket_readouts, is_oversampling_removed, recon_readouts, without_oversampling
from pipelines.errors import BudgetError
from pipelines.gadgetron import Bucket, ImageArray, ReconData
from pipelines.image_group import ImageGroup
from pipelines.mrd import NEVER_IMAGING, AcquisitionFlag, Acquisitions, Image, Waveform, flagged
from pipelines.scan_header import ScanHeader
from server.errors import ProtocolError
from server.image_arrays import images_of
from server.intake import Intake
from server.jobs import Returned

Work = Group | ImageGroup | Returned

_FOR_OTHER_THINGS = (
    AcquisitionFlag.IS_NOISE_MEASUREMENT,
    AcquisitionFlag.IS_PARALLEL_CALIBRATION,
    *NEVER_IMAGING,
)
"""Flags of readouts whose length says nothing about that of the image's."""


class NodeReadoutIntake:
    """For a pipeline that takes readouts. The interface of `server.intake.Intake`, and `message`."""

    def __init__(self, scan: ScanHeader, make: Callable[[ScanHeader], Assembler], most_early_bytes: int) -> None:
        """An intake without any data.

        Args:
            scan: the header as it came.
            make: makes the assembly for a header.
            most_early_bytes: of noise and calibration that may come before the first readout for an image.

        Raises:
            PipelineError: the header asks for what cannot be assembled.
        """
        self._scan = scan
        self._make = make
        self._most_early_bytes = most_early_bytes
        self._assembler = make(scan)
        self._is_settled = False
        self._early: list[Acquisitions] = []
        self._early_bytes = 0
        self._returned: list[Work] = []

    @property
    def counts(self) -> Mapping[str, int]:
        """Readouts by what became of them."""
        return self._assembler.counts

    def acquisitions(self, batch: Acquisitions) -> Sequence[Work]:
        """Place readouts."""
        if self._is_settled:
            return self._assembler.add(batch)
        for_images = np.flatnonzero(~flagged(batch.headers, *_FOR_OTHER_THINGS))
        if not for_images.size or not batch.n_samples:
            return self._keep(batch)
        first = batch.headers[for_images[0]]
        self._settle(int(first["encoding_space_ref"]), batch.n_samples)
        return self._assembler.add(batch)

    def waveform(self, waveform: Waveform) -> None:
        """Keep a waveform as far as the assembly does, and send it back."""
        self._assembler.add_waveform(waveform)
        self._returned.append(Returned(waveform, waveform.samples.nbytes))

    def image(self, image: Image) -> Sequence[Work]:
        """Send it back: pipelines for images are chosen by name."""
        return [*self._take_returned(), Returned(image, image.pixels.nbytes)]

    def message(self, event: Bucket | ReconData | ImageArray) -> Sequence[Work]:
        """Take what only Gadgetron sends."""
        match event:
            case Bucket():
                for waveform in event.waveforms:
                    self._assembler.add_waveform(waveform)
                return self._unit(bucket_readouts(event), is_whole=False)
            case ReconData():
                return self._recon_data(event)
            case ImageArray():
                return [*self._take_returned(), Returned(event, event.data.nbytes)]

    def finish(self) -> Sequence[Work]:
        """Hand on what is left."""
        self._feed_early()
        return [*self._take_returned(), *self._assembler.finish()]

    def take_ready(self) -> Sequence[Work]:
        """Work that was complete before an error, and what goes back."""
        return [*self._assembler.take_ready(), *self._take_returned()]

    def take_warnings(self) -> Sequence[str]:
        """What the assembly has to say."""
        return self._assembler.take_warnings()

    def abandon(self) -> None:
        """Give back the memory of open groups."""
        self._early = []
        self._returned = []
        self._assembler.abandon()

    def _recon_data(self, recon: ReconData) -> Sequence[Work]:
        for bit in recon.bits:
            measured = bit.data.headers[bit.data.headers["number_of_samples"] > 0]
            if measured.size and not self._is_settled:
                self._settle(int(measured[0]["encoding_space_ref"]), bit.data.data.shape[-1])
        return self._unit(recon_readouts(recon, self._scan), is_whole=True)

    def _unit(self, batches: Iterable[Acquisitions], *, is_whole: bool) -> Sequence[Work]:
        done: list[Work] = self._take_returned()
        try:
            for batch in batches:
                done += self.acquisitions(batch)
            return done + self._assembler.end_unit(is_whole=is_whole)
        except Exception:
            # What was complete is not lost: the session takes it with `take_ready`.
            self._returned = done
            raise

    def _settle(self, encoding: int, n_samples: int) -> None:
        """Choose the header that fits the data, now that there are some."""
        self._is_settled = True
        if is_oversampling_removed(self._scan, encoding, n_samples):
            self._scan = without_oversampling(self._scan)
            self._assembler = self._make(self._scan)
        self._feed_early()

    def _keep(self, batch: Acquisitions) -> Sequence[Work]:
        self._early_bytes += batch.samples.nbytes + batch.headers.nbytes
        if self._early_bytes > self._most_early_bytes:
            raise BudgetError(f"readouts of more than {self._most_early_bytes} bytes before the first for an image")
        self._early.append(_copied(batch))
        return []

    def _feed_early(self) -> None:
        early, self._early = self._early, []
        for batch in early:
            self._assembler.add(batch)

    def _take_returned(self) -> list[Work]:
        returned, self._returned = self._returned, []
        return returned


class NodeImageIntake:
    """For a pipeline that takes images. The interface of `server.intake.Intake`, and `message`."""

    counts: Mapping[str, int] = {}

    def __init__(self, scan: ScanHeader | None) -> None:
        self._scan = scan
        self._returned: list[Work] = []

    def acquisitions(self, batch: Acquisitions) -> Sequence[Work]:
        """Send them back."""
        kept = _copied(batch)
        return [*self.take_ready(), Returned(kept, kept.samples.nbytes)]

    def waveform(self, waveform: Waveform) -> None:
        """Send it back."""
        self._returned.append(Returned(waveform, waveform.samples.nbytes))

    def image(self, image: Image) -> Sequence[Work]:
        """Hand it on at once."""
        return [*self.take_ready(), ImageGroup((image,), self._scan)]

    def message(self, event: Bucket | ReconData | ImageArray) -> Sequence[Work]:
        """Take the images of an array; everything else is refused.

        Raises:
            ProtocolError: buckets or recon data, or headers that do not fit the pixels.
        """
        if not isinstance(event, ImageArray):
            raise ProtocolError(
                "k-space was sent; the chosen pipeline takes images",
                kind="bad_order",
                advice="Put the node behind the reconstruction, or choose a pipeline for raw data.",
            )
        return [*self.take_ready(), *(ImageGroup((image,), self._scan) for image in images_of(event))]

    def finish(self) -> Sequence[Work]:
        """Nothing is left but what goes back."""
        return self.take_ready()

    def take_ready(self) -> Sequence[Work]:
        """What goes back."""
        returned, self._returned = self._returned, []
        return returned

    def take_warnings(self) -> Sequence[str]:
        """Nothing to say."""
        return []

    def abandon(self) -> None:
        """Nothing is held."""
        self._returned = []


def _copied(batch: Acquisitions) -> Acquisitions:
    """Readouts on memory of their own: those that come lie in the receive buffer."""
    track = None if batch.trajectory is None else np.array(batch.trajectory)
    return Acquisitions(batch.headers.copy(), np.array(batch.samples), track)


AnyIntake = Intake | NodeReadoutIntake | NodeImageIntake
"""Where the data of any session go."""
