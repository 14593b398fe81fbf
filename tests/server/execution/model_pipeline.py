"""A pipeline that opens a model; imported by name in workers, which shows what of the settings reaches them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from fake_pipeline import FakeOutput

from models.architectures import ARCHITECTURES
from models.store import open_model
from pipelines.assembly.frame import Group, Grouping
from pipelines.mrd import IMAGE_HEADER, Image
from pipelines.parameters import Parameters
from pipelines.registry import PipelineEntry
from tests import tiny_model

ARCHITECTURES[tiny_model.ARCHITECTURE] = tiny_model.FACTORY


class LearnedParameters(Parameters):
    """With the model to open."""

    model: str = "tiny-line"


ENTRY = PipelineEntry("learned", "Opens a model.", LearnedParameters, Grouping.SLICE, "model_pipeline:Learned")


class Learned:
    def __init__(self, parameters: LearnedParameters, _: str) -> None:
        self._model = open_model(parameters.model)

    def __call__(self, _: Group, __: Mapping[str, str]) -> FakeOutput:
        header = np.zeros((), IMAGE_HEADER)
        header["data_type"], header["channels"], header["matrix_size"] = 5, 1, 1
        meta = {name: [value] for name, value in self._model.details().items()}
        pixels = np.zeros((1, 1, 1, 1), np.float32)
        return FakeOutput((Image(header, pixels, meta),), outside_domain=("data_residual", "energy_per_pixel"))


def load(name: str, parameters: Mapping[str, object], device: str) -> Any:
    """As `pipelines.loading.load`, with this entry."""
    return ENTRY.load(ENTRY.parse(parameters), device)
