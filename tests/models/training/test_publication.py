"""What a card says about a run: licences by their identifiers, where data come from, how long it took, figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import TrainingDataError, TrainingError
from models.training.images import Source
from models.training.loop import CHECKPOINT, HISTORY
from models.training.publication import (
    address,
    code_version,
    data_sources,
    device_name,
    duration_s,
    final_figures,
    spdx,
)

ORIGIN = """source:  github:someone/heads
path:    a/**.png
commit/version: 12ab
licence: none stated
description: heads: many"""


def source(name: str = "heads", licence: str = "", origin: str = "", attribution: str = "") -> Source:
    return Source(name, licence, origin, attribution, ("a", "b"), (), ())


@pytest.mark.parametrize(
    ("written", "identifier"),
    [
        ("CC BY-SA 3.0 (IXI dataset, brain-development.org)", "CC-BY-SA-3.0"),
        ("BSD-3 (Colin27 from mricron), BSD-2 (S1 from pycortex)", "BSD-3-Clause AND BSD-2-Clause"),
        ("CC0 (Sunnybrook Cardiac Data)", "CC0-1.0"),
        ("CC0-1.0", "CC0-1.0"),
        ("cc by 4.0", "CC-BY-4.0"),
        ("CC-BY-NC-SA-4.0", "CC-BY-NC-SA-4.0"),
        ("BSD-3-Clause and MIT", "BSD-3-Clause AND MIT"),
        ("Apache-2.0; CC0, CC0 1.0", "Apache-2.0 AND CC0-1.0"),
        ("PDDL-1.0", "PDDL-1.0"),
        ("ODbL", "ODbL-1.0"),
        ("LicenseRef-fastMRI", "LicenseRef-fastMRI"),
        ("", None),
        ("(all of it)", None),
        ("free for research", None),
        ("MIT, ask us", None),
        ("CC BY-SA", None),
        ("BSD", None),
        ("BSD-4", None),
    ],
)
def test_licences_get_their_spdx_identifier_or_none(written: str, identifier: str | None) -> None:
    assert spdx(written) == identifier


@given(st.text(max_size=40))
def test_what_is_found_is_found_again(text: str) -> None:
    found = spdx(text)
    assert found is None or spdx(found) == found


def test_a_card_tells_of_each_source() -> None:
    first, second = data_sources(
        [source("heads", "CC BY-SA 3.0 (IXI)", ORIGIN), source("hearts", "CC0", "a DOI\nof them", "thanks")], {}
    )
    assert first.name == "heads: 2 subjects, 0 slices"
    assert (first.licence, first.attribution) == ("CC-BY-SA-3.0", "IXI")
    assert first.source == "https://github.com/someone/heads, version 12ab"
    assert (second.licence, second.source, second.attribution) == ("CC0-1.0", "a DOI of them", "thanks")


def test_a_licence_that_no_file_says_has_to_be_given() -> None:
    with pytest.raises(TrainingDataError, match=r"heads: no licence is known .* the file says nothing"):
        data_sources([source()], {})
    with pytest.raises(TrainingDataError, match="the file says 'ask us'"):
        data_sources([source(licence="ask us")], {})
    (record,) = data_sources([source(licence="ask us")], {"heads": "LicenseRef-asked"})
    assert (record.licence, record.source) == ("LicenseRef-asked", "not stated in the file")
    with pytest.raises(TrainingDataError, match="given for hands, but no data"):
        data_sources([source(licence="MIT")], {"hands": "MIT"})


def test_an_address_is_one_line() -> None:
    assert address(ORIGIN.replace("commit/version: 12ab\n", "")) == "https://github.com/someone/heads"
    assert address("doi:10.1/2\n\n  (second part)") == "doi:10.1/2 (second part)"
    assert address("") == ""


def write_history(directory: Path, *lines: dict[str, float]) -> None:
    (directory / HISTORY).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_duration_is_that_of_the_history(tmp_path: Path) -> None:
    write_history(tmp_path, {"update": 1, "seconds": 2.0}, {"update": 2, "seconds": 5.5})
    assert duration_s(tmp_path) == (5.5, True)


def test_duration_of_an_old_run_is_what_its_files_span(tmp_path: Path) -> None:
    write_history(tmp_path, {"update": 2})
    for name, time in {"energies-000001.png": 1000, "energies-000002.png": 1500, CHECKPOINT: 1600}.items():
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time, time))
    assert duration_s(tmp_path) == (600, False)
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(TrainingError, match="holds no run"):
        duration_s(tmp_path)


def test_figures_are_those_of_the_last_update_with_their_units(tmp_path: Path) -> None:
    last = {"update": 9, "loss": 1.0, "psnr_db_0.05": 33.5, "energy_data": 2.5, "energy_difference": 0.1, "chain": 3}
    write_history(tmp_path, {"update": 4, "psnr_db_0.05": 20.0}, last)
    assert final_figures(tmp_path, 9) == {"psnr_db_0.05": 33.5, "energy_data_nats_per_pixel": 2.5}
    for updates, directory in ((10, tmp_path), (9, tmp_path / "absent")):
        with pytest.raises(TrainingError, match=f"does not tell of update {updates}"):
            final_figures(directory, updates)


def test_processor_and_program_have_names() -> None:
    assert device_name("cpu")
    assert code_version()[0].isdigit()
