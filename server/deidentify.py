"""Scan headers without what tells whose scan it is.

What is kept is on a list; all else goes, known or unknown: names, dates, ages, institution, serial numbers, comments,
free texts of the protocol. Ids by which measurements refer to each other become digests with a secret of this process,
so that they still refer. Reference: ISMRMRD header schema, `ismrmrd.xsd`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from typing import Final
from xml.etree.ElementTree import Element, ParseError, register_namespace, tostring

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from pipelines.errors import HeaderError

NAMESPACE: Final = "http://www.ismrm.org/ISMRMRD"
_WHOLE: Final = frozenset(
    {"version", "experimentalConditions", "encoding", "sequenceParameters", "waveformInformation"}
)
"""Elements of the header that are kept with all that is in them."""
_PARTS: Final = {
    "acquisitionSystemInformation": frozenset(
        {
            "systemVendor",
            "systemModel",
            "systemFieldStrength_T",
            "relativeReceiverNoiseBandwidth",
            "receiverChannels",
            "coilLabel",
        }
    ),
    "measurementInformation": frozenset(
        {"measurementID", "patientPosition", "relativeTablePosition", "sequenceName", "measurementDependency"}
    ),
    "userParameters": frozenset({"userParameterLong", "userParameterDouble"}),
}
"""Elements of which only some children are kept."""
_IDS: Final = frozenset({"measurementID"})
_DIGITS: Final = 24
_SECRET: Final = secrets.token_bytes(16)


def without_patient(xml: bytes) -> bytes:
    """A scan header that tells how a scan was made, and not whose it is.

    Raises:
        HeaderError: it is no XML, or has a document type.
    """
    try:
        root: Element = ElementTree.fromstring(xml, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise HeaderError("the scan header is no XML that can be read") from error
    register_namespace("", NAMESPACE)
    for child in list(root):
        name = _local(child)
        kept = _PARTS.get(name)
        if kept is not None:
            for part in [each for each in child if _local(each) not in kept]:
                child.remove(part)
        elif name not in _WHOLE:
            root.remove(child)
    for element in _all(root):
        if _local(element) in _IDS and element.text:
            element.text = hashlib.blake2b(element.text.encode(), digest_size=_DIGITS // 2, key=_SECRET).hexdigest()
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True))


def _all(root: Element) -> Iterator[Element]:
    return root.iter()


def _local(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]
