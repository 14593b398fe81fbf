"""Previews: which pipelines have one, what it is made with, how its images are marked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.image_pipeline import SERIES_STEP
from pipelines.mrd import IMAGE_HEADER, Image
from pipelines.parts import Part
from pipelines.preview import SERIES_OFFSET, as_preview, is_preview
from pipelines.registry import find, pipelines


def image(series: int, **meta: list[str]) -> Image:
    header = np.zeros((), IMAGE_HEADER)
    header["image_series_index"], header["image_index"] = series, 7
    return Image(header, np.ones((1, 1, 2, 3), np.float32), meta)


def test_a_preview_says_that_it_is_one_and_is_otherwise_the_same():
    made = image(2, SeriesDescription=["heart_recon"], ImageComments=["why"], ImageProcessingHistory=["ECHOTRAIN"])
    found = as_preview(made, "cine_ls_dip")
    assert is_preview(found)
    assert not is_preview(made)
    assert int(found.header["image_series_index"]) == 2 + SERIES_OFFSET
    assert int(found.header["image_index"]) == 7
    assert found.pixels is made.pixels
    assert found.meta["SeriesDescription"] == ["heart_recon_preview"]
    assert found.meta["ImageComments"] == ["Preview; the image of cine_ls_dip follows; why"]
    assert found.meta["ImageProcessingHistory"] == ["ECHOTRAIN", "PREVIEW"]
    assert int(made.header["image_series_index"]) == 2, "the original stays as it is"


def test_series_of_previews_meet_no_others():
    others = max(part.series_offset for part in Part) + 1000
    assert 2 * SERIES_STEP + others < SERIES_OFFSET < 2**16 - others


def test_every_quick_look_exists_and_takes_what_the_scan_says():
    slow = [entry for entry in pipelines().values() if entry.quick_look is not None]
    assert {entry.name for entry in slow} >= {"joint_ipalm", "cine_ls_dip"}
    for entry in slow:
        values = entry.parse({"preview": "true", "noise_level": 1.5, "whiten": False, "coil_compression": 5})
        name, parameters = entry.preview(values.model_dump()) or ("", {})
        made: Any = find(name).parse(parameters)
        assert (made.noise_level, made.whiten, made.coil_compression) == (1.5, False, 5)
        assert find(name).preview(parameters) is None, "a preview has no preview"


def test_the_preview_of_cine_is_low_rank_plus_sparse():
    entry = find("cine_ls_dip")
    name, parameters = entry.preview(entry.parse({"preview": True}).model_dump()) or ("", {})
    assert (name, parameters["method"]) == ("cine_ls_dip", "low_rank_sparse")


def test_nobody_gets_a_preview_who_asks_for_none():
    for name in ("joint_ipalm", "cine_ls_dip", "sense"):
        assert find(name).preview(find(name).parse({}).model_dump()) is None


def test_quick_pipelines_know_no_preview():
    with pytest.raises(ValidationError):
        find("sense").parameters.model_validate({"preview": True})
