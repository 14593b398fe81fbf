"""What configurations select; hypothesis throws names at it and nothing but the registry may be touched."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import registry
from pipelines.errors import PipelineError
from server.config import load
from server.errors import ServerError
from server.selection import refine, select, select_for_node

SETTINGS = load(
    flags={
        "pipelines.default": "sense",
        "pipelines.parameters": {"sense": {"iterations": 7}},
        "pipelines.aliases": {"GenericReconCartesianGrappaGadget": "sense", "SimpleReconGadget": "zero_filled"},
    },
    environment={},
).settings.pipelines

XML = """<configuration><version>2</version><stream><gadget><dll>gadgetron_mricore</dll>
<classname>{}</classname></gadget></stream></configuration>"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("sense", "sense"),
        ("zero_filled", "zero_filled"),
        ("default", "sense"),
        ("default.xml", "sense"),
        (" openrecon\n", "sense"),
        ("null", None),
        ("isalive.xml", None),
        ('{"pipeline": "zero_filled"}', "zero_filled"),
        ('{"parameters": {"config": "zero_filled"}}', "zero_filled"),
        ('{"parameters": {"config": "openrecon", "customconfig": "zero_filled"}}', "zero_filled"),
        ('{"parameters": {}}', "sense"),
        (XML.format("GenericReconCartesianGrappaGadget"), "sense"),
        (XML.format("SimpleReconGadget"), "zero_filled"),
        (XML.format("NoiseSummaryGadget"), None),
    ],
)
def test_known_configurations_select_their_pipeline(text: str, name: str | None) -> None:
    entry = select(text, SETTINGS).entry
    assert (entry.name if entry else None) == name


@pytest.mark.parametrize("text", ["sense.xml", "SENSE", "sense\0", "os", "../sense", "server.cli", "", XML.format("X")])
def test_what_is_not_in_the_registry_is_refused(text: str) -> None:
    with pytest.raises(PipelineError) as caught:
        select(text, SETTINGS)
    assert caught.value.code == "unknown_pipeline"
    assert "sense, unrolled, zero_filled" in str(caught.value)


def test_parameters_of_the_peer_win_over_those_of_the_settings() -> None:
    assert select("sense", SETTINGS).parameters["iterations"] == 7
    given_text = '{"pipeline": "sense", "parameters": {"iterations": "9", "whiten": "False"}}'
    parameters = select(given_text, SETTINGS).parameters
    assert parameters["iterations"] == 9
    assert parameters["whiten"] is False


def test_fires_second_json_keeps_what_it_does_not_say() -> None:
    first = select('{"pipeline": "sense", "parameters": {"iterations": 9}}', SETTINGS)
    second = refine('{"version": "1.1.0", "parameters": {"tolerance": "0.01"}}', first, SETTINGS)
    assert second.parameters["iterations"] == 9
    assert second.parameters["tolerance"] == 0.01
    other = refine('{"parameters": {"config": "zero_filled"}}', first, SETTINGS)
    assert other.entry is registry.find("zero_filled")


@pytest.mark.parametrize(
    "properties",
    [
        "<property><name>iterations</name><value>9</value></property>"
        "<property><name>image_series</name><value>1</value></property>",
        '<property name="iterations" value="9"/><property name="image_series" value="1"/>',
    ],
)
def test_properties_of_a_gadget_are_parameters_in_both_dialects(properties: str) -> None:
    text = XML.format("GenericReconCartesianGrappaGadget").replace("</gadget>", properties + "</gadget>")
    selection = select(text, SETTINGS)
    assert selection.parameters["iterations"] == 9
    assert "image_series" in selection.warnings[0]


def test_a_wrong_property_of_a_gadget_is_refused_with_what_is_allowed() -> None:
    wrong = '<property name="iterations" value="none"/></gadget>'
    with pytest.raises(PipelineError, match="expected a whole number, at least 1, at most 500; 'none' came"):
        select(XML.format("sense").replace("</gadget>", wrong), SETTINGS)


def test_other_keys_beside_the_parameters_are_reported() -> None:
    (warning,) = select('{"pipeline": "sense", "colour": 1}', SETTINGS).warnings
    assert "colour" in warning


class Watch:
    """Notes what is imported, opened or executed; one audit hook for the process, since hooks cannot be taken out."""

    def __init__(self) -> None:
        self.is_on = False
        self.touched: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event in {"import", "open", "exec", "compile"}:
            self.touched.append(f"{event} {arguments[0]}")


WATCH = Watch()


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.text().map(lambda s: "{" + s), st.text().map(lambda s: "<" + s)))
def test_any_text_selects_or_is_refused_and_imports_and_opens_nothing(text: str) -> None:
    WATCH.touched.clear()
    WATCH.is_on = True
    try:
        with contextlib.suppress(PipelineError, ServerError):
            select(text, SETTINGS)
    finally:
        WATCH.is_on = False
    assert not [what for what in WATCH.touched if "encodings" not in what]


# ---- external nodes of Gadgetron


@pytest.mark.parametrize(
    ("text", "name", "iterations", "as_arrays"),
    [
        ("", "sense", 7, False),
        ('<?xml version="1.0"?>\n', "sense", 7, False),
        ('<?xml version="1.0"?>\n<configuration/>\n', "sense", 7, False),
        ("<configuration><pipeline> sense </pipeline></configuration>", "sense", 7, False),
        ('<configuration><property name="iterations" value="20"/></configuration>', "sense", 20, False),
        (
            "<configuration><property><name>iterations</name><value>20</value></property></configuration>",
            "sense",
            20,
            False,
        ),
        ('<configuration pipeline="sense" iterations="20" output="image_array"/>', "sense", 20, True),
        ("<configuration><iterations>20</iterations><output>image_array</output></configuration>", "sense", 20, True),
        (
            '<configuration pipeline="default"><property name="python_path" value="x"/></configuration>',
            "sense",
            7,
            False,
        ),
        ('{"pipeline": "sense", "parameters": {"iterations": 20}}', "sense", 20, False),
        ("sense", "sense", 7, False),
    ],
)
def test_the_configuration_of_a_node_selects_its_pipeline(
    text: str, name: str, iterations: int, as_arrays: bool
) -> None:
    selection = select_for_node(text, SETTINGS)

    assert selection.entry is registry.find(name)
    assert selection.parameters["iterations"] == iterations
    assert selection.as_arrays is as_arrays


def test_the_target_of_a_node_is_used_where_its_configuration_names_no_pipeline() -> None:
    named = "<configuration><pipeline>sense</pipeline></configuration>"

    assert select_for_node("<configuration/>", SETTINGS, "zero_filled").entry is registry.find("zero_filled")
    assert select_for_node(named, SETTINGS, "zero_filled").entry is registry.find("sense")
    assert select_for_node("<configuration/>", SETTINGS, as_arrays=True).as_arrays
    with pytest.raises(PipelineError, match="no_such"):
        select_for_node("<configuration/>", SETTINGS, "no_such")


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ('<configuration><property name="iterationz" value="3"/></configuration>', "bad_parameter", "iterationz"),
        ('<configuration><property value="3"/></configuration>', "bad_parameter", "''"),
        ('<configuration iterations="3"><iterations>4</iterations></configuration>', "bad_parameter", "given twice"),
        ('<configuration output="dicom"/>', "bad_parameter", "'images' or 'image_array', found 'dicom'"),
        ("<configuration><pipeline>os</pipeline></configuration>", "unknown_pipeline", "os"),
        ("<configuration><version>2</version><stream/></configuration>", "protocol", "an external node was expected"),
        ("<gadgetronStreamConfiguration/>", "protocol", "gadgetronStreamConfiguration"),
        ("<configuration>", "protocol", "malformed"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><configuration/>', "protocol", "document type"),
    ],
)
def test_a_wrong_configuration_of_a_node_is_refused_by_name(text: str, code: str, words: str) -> None:
    with pytest.raises((PipelineError, ServerError)) as caught:
        select_for_node(text, SETTINGS)

    assert caught.value.code == code
    assert words in str(caught.value)
