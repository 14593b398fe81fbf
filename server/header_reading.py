"""What a peer's scan header means for what its configuration selected; the same for sessions and for streams.

Pipelines for readouts need a header. Those for images do not: clients that send a file of images without one put a
sentence in its place. And a sentence where a header belongs is no error yet for any pipeline, because the JSON
configuration behind it may choose a pipeline for images.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import HeaderError
from pipelines.scaling import SeriesScaler
from pipelines.scan_header import ScanHeader, parse_scan_header
from server.config import Settings
from server.selection import Selection


@dataclass(frozen=True, slots=True)
class HeaderReading:
    """A header as far as it was understood.

    Attributes:
        scan: the header; None where it is not needed or cannot be used.
        error: what is wrong with it, to be raised at the first data unless another pipeline is chosen before.
        warning: a sentence for the peer, or none.
    """

    scan: ScanHeader | None = None
    error: HeaderError | None = None
    warning: str = ""


def read_header(xml: bytes | None, selection: Selection, settings: Settings) -> HeaderReading:
    """Read the header for a selection.

    Raises:
        HeaderError: XML that is no scan header, where one is needed.
    """
    if xml is None or not selection.needs_header:
        return HeaderReading()
    try:
        return HeaderReading(parse_scan_header(xml, max_bytes=settings.limits.xml_bytes))
    except HeaderError as error:
        if takes_images(selection):
            return HeaderReading(warning=f"the header is not used: {error}")
        if xml.lstrip().startswith(b"<"):
            raise
        return HeaderReading(error=error)


def takes_images(selection: Selection) -> bool:
    """Whether the selected pipeline takes images instead of readouts."""
    return selection.entry is not None and selection.entry.takes_images


def scaler_for(scan: ScanHeader | None, selection: Selection, settings: Settings) -> SeriesScaler | None:
    """What makes integers of the images, where the settings ask for it; images of the peer's own stay as they are."""
    if settings.emission.pixels != "uint16" or scan is None or takes_images(selection):
        return None
    return SeriesScaler() if scan.bits_stored is None else SeriesScaler(min(scan.bits_stored, 16))
