"""From a name in the registry to something that runs jobs; imported in workers only, for it brings torch."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.image_pipeline import ImagePipeline
from pipelines.pipeline import Pipeline
from pipelines.registry import find


def load(name: str, parameters: Mapping[str, object], device: str) -> Pipeline | ImagePipeline:
    """The pipeline of that name, for readouts or for images.

    Raises:
        UnknownPipelineError: the registry has no such name.
        ParameterError: a parameter is unknown or out of range.
        ModelUnavailableError: the pipeline's model is missing, or does not match its card.
    """
    return (ImagePipeline if find(name).takes_images else Pipeline)(name, parameters, device)
