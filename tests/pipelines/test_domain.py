"""Results outside the domain of their model: said once by the reconstruction, seen on every image and by the caller."""

import numpy as np
import pytest
import torch

from models.errors import WeightsError
from pipelines.assembly.frame import Grouping
from pipelines.derive.derivation import Derived
from pipelines.domain import DomainReason, checked_values, domain_comment, domain_details, reasons_outside
from pipelines.errors import ModelUnavailableError
from pipelines.image_group import ImageGroup
from pipelines.image_pipeline import ImagePipeline
from pipelines.loading import load
from pipelines.mrd import IMAGE_HEADER, Image, ImageDataType, ImageType
from pipelines.parameters import ImageParameters, Parameters
from pipelines.pipeline import Pipeline
from pipelines.recon.reconstruction import Prepared, Reconstructed, UncertaintyKind
from pipelines.registry import PipelineEntry, pipelines

MODEL = {"ReconModel": "tiny-line", "ReconModelVersion": "1.0.0", "ReconModelDigest": "ab" * 32}
OUTSIDE = domain_details(["energy_per_pixel", "data_residual"])
COMMENT = "OUTSIDE THE DOMAIN OF THE MODEL (data residual, energy per pixel): compare with another reconstruction"
ERROR = WeightsError("model tiny-line@1.0.0: it has a card but no weights")


class Learned:
    """Gives ones, with the details of the test's choice."""

    details: dict[str, str] = {}  # noqa: RUF012
    fails_at: str = ""

    def __init__(self, *_: object) -> None:
        if self.fails_at == "load":
            raise ERROR

    def __call__(self, prepared: Prepared) -> Reconstructed:
        if self.fails_at == "run":
            raise ERROR
        shape = prepared.kspace[:, 0].shape
        image = torch.ones(shape, dtype=torch.complex64)
        return Reconstructed(image, image.abs(), UncertaintyKind.POSTERIOR, details=self.details)


class Derives:
    def __init__(self, *_: object) -> None:
        """Nothing to load."""

    def __call__(self, image: Image, _: list[str]) -> Derived:
        pixels = image.pixels.astype(np.float32)
        return Derived(pixels, pixels, "noise", "analytic", "learned", {**MODEL, **OUTSIDE})


@pytest.fixture(autouse=True)
def _entries(monkeypatch):
    for name, parameters, grouping, factory in (
        ("learned", Parameters, Grouping.SLICE, Learned),
        ("derives", ImageParameters, Grouping.IMAGE, Derives),
    ):
        monkeypatch.setattr(f"pipelines.domain.{factory.__name__}", factory, raising=False)
        entry = PipelineEntry(name, "Of a test.", parameters, grouping, f"pipelines.domain:{factory.__name__}")
        monkeypatch.setitem(pipelines(), name, entry)


@pytest.mark.parametrize(
    ("details", "reasons"),
    [
        (domain_details([]), ()),
        (domain_details(["energy_per_pixel"]), ("energy_per_pixel",)),
        (OUTSIDE, ("data_residual", "energy_per_pixel")),
        (domain_details(["made up", "more"]), ("other",)),
        ({"ReconDomain": "outside"}, ("other",)),
        ({"ReconDomain": "outside", "ReconDomainReason": "<b>x</b>"}, ("other",)),
        ({}, ()),
    ],
)
def test_reasons_come_from_a_bounded_set(details, reasons):
    assert reasons_outside(details) == reasons
    assert set(reasons_outside(details)) <= set(DomainReason)
    assert bool(domain_comment(details)) == bool(reasons)


def test_a_result_outside_is_marked_on_every_image_and_told_to_the_caller(make_group, monkeypatch):
    monkeypatch.setattr(Learned, "details", {**MODEL, **OUTSIDE})
    output = Pipeline("learned", {"parts": "magnitude,phase"}, "cpu")(make_group(), {})

    assert len(output.images) == 3
    for image in output.images:
        assert image.meta["ImageComments"][0].startswith(COMMENT)
        assert image.meta["ReconDomain"] == ["outside"]
        assert image.meta["ReconDomainReason"] == ["data_residual, energy_per_pixel"]
        assert {name: image.meta[name] for name in MODEL} == {name: [value] for name, value in MODEL.items()}
    assert output.images[-1].meta["ImageComments"] == [
        f"{COMMENT}; Standard deviation of the magnitude series, in its units"
    ]
    assert output.outside_domain == ("data_residual", "energy_per_pixel")
    assert [text for text in output.warnings if "OUTSIDE" in text] == [f"Images are {COMMENT}."]


@pytest.mark.parametrize("details", [{}, domain_details([])])
def test_a_result_inside_or_not_checked_bears_no_mark(make_group, monkeypatch, details):
    monkeypatch.setattr(Learned, "details", details)
    output = Pipeline("learned", {}, "cpu")(make_group(), {})

    magnitude, deviation = output.images
    assert "ImageComments" not in magnitude.meta
    assert deviation.meta["ImageComments"] == ["Standard deviation of the magnitude series, in its units"]
    assert output.outside_domain == ()
    assert not any("DOMAIN" in text for text in output.warnings)


def test_images_made_of_images_are_marked_and_originals_are_not():
    header = np.zeros((), IMAGE_HEADER)
    header["version"], header["image_type"], header["data_type"] = 1, ImageType.MAGNITUDE, ImageDataType.FLOAT
    header["matrix_size"], header["channels"] = (4, 4, 1), 1
    # What a peer says of its own images is not what this server says of its results.
    original = Image(
        header, np.ones((1, 1, 4, 4), np.float32), {"ReconDomain": ["outside"], "ImageComments": ["theirs"]}
    )

    output = ImagePipeline("derives", {}, "cpu")(ImageGroup((original,)), {})

    first, derived, deviation = output.images
    assert first.meta["ImageComments"] == ["theirs"]
    assert derived.meta["ImageComments"] == [COMMENT]
    assert deviation.meta["ImageComments"][0].startswith(f"{COMMENT}; Standard deviation")
    assert derived.meta["ReconModelDigest"] == [MODEL["ReconModelDigest"]]
    assert output.outside_domain == ("data_residual", "energy_per_pixel")
    passed = ImagePipeline("pass_through", {}, "cpu")(ImageGroup((original,)), {})
    assert passed.outside_domain == ()


def test_a_model_that_cannot_be_opened_fails_the_loading_with_its_own_code(monkeypatch):
    monkeypatch.setattr(Learned, "fails_at", "load")

    with pytest.raises(ModelUnavailableError, match=r"'learned': model tiny-line@1\.0\.0: it has a card") as caught:
        load("learned", {}, "cpu")

    assert caught.value.code == "model_unavailable"
    assert caught.value.__cause__ is ERROR


def test_a_model_that_only_the_data_ask_for_fails_the_job_with_the_same_code(make_group, monkeypatch):
    monkeypatch.setattr(Learned, "fails_at", "run")
    pipeline = Pipeline("learned", {}, "cpu")

    with pytest.raises(ModelUnavailableError, match=r"'learned': model tiny-line@1\.0\.0"):
        pipeline(make_group(), {})


def test_only_results_of_a_model_have_values_to_check():
    values = {"ReconEnergyPerPixel": "0.412", "ReconResidual": "1.02"}
    assert checked_values({**values, "ReconModel": "energy-brain"}) == (0.412, 1.02)
    assert checked_values({"ReconResidual": "1.02", "ReconModel": "other"}) == (None, 1.02)
    assert checked_values({"ReconResidual": "1.2e-05"}) == (None, None)
    assert checked_values({**values, "ReconModel": "energy-brain", "ReconInstead": "sense"}) == (None, None)
