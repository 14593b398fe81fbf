"""The example configurations for Gadgetron: well-formed, understood by our selection, and described."""

from __future__ import annotations

from pathlib import Path

import pytest
from defusedxml import ElementTree

from server import gadgetron_node
from server.config import load
from server.selection import select_for_node

FOLDER = Path(__file__).parents[2] / "deploy" / "gadgetron"
FILES = sorted(FOLDER.glob("*.xml"))
SETTINGS = load(environment={}).settings


def test_there_is_one_for_each_way_of_attaching():
    ways = [child.tag for file in FILES for child in ElementTree.parse(file).iterfind("stream/external/*")]

    assert {"connect", "execute"} <= set(ways)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_node_of_an_example_is_one_that_we_serve(file: Path):
    root = ElementTree.parse(file).getroot()
    assert (root.tag, root.findtext("version")) == ("configuration", "2")
    (external,) = root.iterfind("stream/external")
    connect, execute = external.find("connect"), external.find("execute")
    preferred = ""
    if connect is not None:
        assert connect.get("port") == str(SETTINGS.gadgetron.port)
    else:
        assert execute is not None
        assert (execute.get("name"), execute.get("type")) == ("server.gadgetron_node", "python")
        preferred = execute.get("target", "")
        assert callable(getattr(gadgetron_node, preferred))
    subtree = ElementTree.tostring(external.find("configuration"), encoding="unicode")

    selection = select_for_node(f'<?xml version="1.0"?>\n{subtree}\n', SETTINGS.pipelines, preferred)

    assert selection.entry is not None
    assert selection.entry.name in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_gadget_of_an_example_is_in_the_readme(file: Path):
    readme = (FOLDER / "README.md").read_text()

    assert f"`{file.name}`" in readme
    for gadget in ElementTree.parse(file).getroot().iterfind("stream/gadget/classname"):
        assert gadget.text in readme
