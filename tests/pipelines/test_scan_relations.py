"""Ids, dependencies and coil labels of a scan header: compared, bounded, and read whatever else they hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.scan_header import parse_scan_header
from pipelines.scan_relations import MAX_COIL_LABELS, MAX_DEPENDENCIES, MAX_ID, CoilLabel, coil_order, opaque_id

HEAD = (
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions><H1resonanceFrequency_Hz>1'
    "</H1resonanceFrequency_Hz></experimentalConditions><encoding><encodedSpace>{space}</encodedSpace><reconSpace>"
    "{space}</reconSpace><encodingLimits/><trajectory>cartesian</trajectory></encoding>"
).format(
    space="<matrixSize><x>4</x><y>4</y><z>1</z></matrixSize><fieldOfView_mm><x>1</x><y>1</y><z>1</z></fieldOfView_mm>"
)


def header(measurement: str = "", system: str = ""):
    return parse_scan_header(
        f"{HEAD}<measurementInformation>{measurement}</measurementInformation>"
        f"<acquisitionSystemInformation>{system}</acquisitionSystemInformation></ismrmrdHeader>".encode()
    )


def dependency(kind: str, name: str) -> str:
    return (
        f"<measurementDependency><dependencyType>{kind}</dependencyType><measurementID>{name}</measurementID>"
        "</measurementDependency>"
    )


def label(number: object, name: object) -> str:
    return f"<coilLabel><coilNumber>{number}</coilNumber><coilName>{name}</coilName></coilLabel>"


def test_all_dependencies_are_read_in_their_order():
    scan = header(dependency("SenMap", "1_2") + dependency("Noise", " 1_3 \n") + dependency("noise", "1_4"))

    found = [(each.kind, each.measurement_id) for each in scan.dependencies]
    assert found == [("senmap", "1_2"), ("noise", "1_3"), ("noise", "1_4")]


@pytest.mark.parametrize(
    "malformed",
    [
        "<measurementDependency/>",
        dependency("", "1"),
        dependency("Noise", ""),
        "<measurementDependency><dependencyType>Noise</dependencyType></measurementDependency>",
        "<measurementDependency>text</measurementDependency>",
    ],
)
def test_a_malformed_dependency_counts_as_absent(malformed: str):
    scan = header(malformed + dependency("Noise", "1"))

    assert [each.measurement_id for each in scan.dependencies] == ["1"]


def test_an_element_that_comes_twice_is_read_once():
    twice = "<measurementDependency>" + "".join(
        f"<dependencyType>{kind}</dependencyType><measurementID>{name}</measurementID>"
        for kind, name in [("Noise", "1"), ("SenMap", "2")]
    )
    (found,) = header(twice + "</measurementDependency>").dependencies

    assert (found.kind, found.measurement_id) == ("noise", "1")


def test_dependencies_and_labels_are_bounded_in_number_and_length():
    scan = header(
        dependency("N" * 500, "x" * 5000) * (MAX_DEPENDENCIES + 9), label(1, "n" * 100) * (MAX_COIL_LABELS + 9)
    )

    assert (len(scan.dependencies), len(scan.coil_labels)) == (MAX_DEPENDENCIES, MAX_COIL_LABELS)
    assert max(len(each.kind) for each in scan.dependencies) == max(len(each.name) for each in scan.coil_labels) == 64
    assert len(scan.dependencies[0].measurement_id) < 100


@pytest.mark.parametrize("number", ["", "-3", "x", "1e3", "9" * 30, "٣"])
def test_a_coil_number_that_is_none_is_minus_one(number: str):
    assert header(system=label(number, "A") + "<coilLabel/>").coil_labels == (CoilLabel(-1, "A"), CoilLabel(-1, ""))


@given(st.text(max_size=MAX_ID * 2))
def test_an_id_is_bounded_without_control_characters_and_itself_if_it_can_be(text: str):
    found = opaque_id(text)

    assert len(found) <= MAX_ID
    assert found.isprintable() or not any(ord(letter) < 32 for letter in found)
    assert opaque_id(found) == found


@given(st.text(max_size=10), st.text(min_size=1, max_size=2), st.text(min_size=1, max_size=2))
def test_long_ids_that_differ_stay_different(middle: str, one: str, other: str):
    ids = ["x" * 5000 + middle + end + "." for end in (one, other)]

    assert (opaque_id(ids[0]) == opaque_id(ids[1])) == (one == other)


def labels(*names: str, first: int = 0) -> list[CoilLabel]:
    return [CoilLabel(first + number, name) for number, name in enumerate(names)]


@given(st.permutations(range(6)), st.booleans())
def test_a_permutation_is_found_by_names(order: list[int], is_renumbered: bool):
    then = labels(*"ABCDEF")
    now = [CoilLabel(place if is_renumbered else then[at].number, then[at].name) for place, at in enumerate(order)]

    assert coil_order(then, now) == list(order)


def test_numbers_tell_coils_of_one_name_apart():
    then = [CoilLabel(1, "Body"), CoilLabel(2, "Body"), CoilLabel(3, "Spine")]

    assert coil_order(then, then[::-1]) == [2, 1, 0]


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (labels("A", "B"), labels("A", "C")),
        (labels("A", "B"), labels("A", "B", "C")),
        (labels("A", "B"), []),
        ([CoilLabel(1, "A"), CoilLabel(1, "A")], [CoilLabel(1, "A"), CoilLabel(2, "A")]),
        (labels("A", "A"), labels("A", "A", first=5)),
    ],
)
def test_labels_that_do_not_say_give_no_order(then: list[CoilLabel], now: list[CoilLabel]):
    assert coil_order(then, now) is None


def test_the_same_labels_are_the_same_coils_even_where_several_are_alike():
    assert coil_order(labels("A", "A"), labels("A", "A")) == [0, 1]
    assert coil_order([], []) == []
