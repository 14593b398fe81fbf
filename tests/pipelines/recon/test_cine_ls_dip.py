"""Cine with networks that learn from one scan: quality, what is refused, uncertainty, determinism."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from pipelines.errors import ReconstructionError
from pipelines.parameters import CineLsDipParameters, SenseParameters
from pipelines.progress import reporting
from pipelines.recon.cine_ls_dip import CineLsDip
from pipelines.recon.cine_start import classic, make_start
from pipelines.recon.reconstruction import Prepared, Reconstructed, UncertaintyKind
from pipelines.recon.sense import Sense
from tests.pipelines.recon.cine_scenes import CENTRAL, COLUMNS, FRAMES, ROWS, cartesian_cine, error, radial_cine


def reconstruct(prepared: Prepared, **parameters: object) -> Reconstructed:
    with torch.inference_mode():
        return CineLsDip(CineLsDipParameters.model_validate(parameters), "cpu")(prepared)


@pytest.fixture(scope="module")
def scan():
    return cartesian_cine()


@pytest.fixture(scope="module")
def taught(scan):
    return reconstruct(scan[0], steps=60)


def test_networks_beat_classic_low_rank_plus_sparse_and_that_beats_frames_on_their_own(scan, taught):
    prepared, truth = scan
    alone = Sense(SenseParameters.model_validate({}), "cpu")(prepared)
    plain = reconstruct(prepared, method="low_rank_sparse")
    assert error(taught.image, truth) < 0.93 * error(plain.image, truth)
    assert error(plain.image, truth) < 0.7 * error(alone.image, truth)


def test_every_frame_has_a_deviation_that_is_about_its_error(scan, taught):
    _, truth = scan
    assert taught.image.shape == taught.deviation.shape == (FRAMES, 1, ROWS, COLUMNS)
    assert taught.kind is UncertaintyKind.ENSEMBLE
    wrong = (taught.image[:, 0].abs() - truth).abs()
    inside = truth.mean(0) > 0.05 * truth.max()
    covered = float((wrong <= 1.645 * taught.deviation[:, 0])[:, inside].float().mean())
    assert 0.8 < covered < 0.99
    # where the deviation is large errors are
    spread = taught.deviation[:, 0][:, inside].flatten()
    errors = wrong[:, inside].flatten()
    upper = spread > spread.median()
    assert errors[upper].mean() > 1.5 * errors[~upper].mean()


def test_the_deviation_grows_with_noise_and_with_acceleration():
    def mean(**options: float) -> float:
        return float(reconstruct(cartesian_cine(**options)[0], method="low_rank_sparse").deviation.mean())

    usual = mean()
    assert mean(noise_std=0.06) > 1.2 * usual
    assert usual > 1.1 * mean(lines=20) > 1.2 * mean(lines=32)


def test_the_same_scan_gives_the_same_bytes_and_another_seed_others(scan):
    # Not the fixture: it is made with as many threads as there are cores, and sums depend on that.
    one, again = (reconstruct(scan[0], steps=20) for _ in range(2))
    assert torch.equal(again.image, one.image)
    assert torch.equal(again.deviation, one.deviation)
    other = reconstruct(scan[0], steps=20, seed=1)
    assert not torch.equal(other.image, one.image)


def test_a_louder_scan_gives_a_brighter_image(scan):
    prepared, _ = scan
    louder = Prepared(
        prepared.kspace * 1000, prepared.counts, prepared.calibration * 1000, prepared.noise_std * 1000, True,
        prepared.readout_sampled,
    )  # fmt: skip
    one, other = (reconstruct(each, steps=15) for each in (prepared, louder))
    torch.testing.assert_close(other.image, one.image * 1000, rtol=0, atol=5e-3 * float(other.image.abs().max()))
    torch.testing.assert_close(
        other.deviation, one.deviation * 1000, rtol=1e-2, atol=1e-2 * float(other.deviation.abs().max())
    )


def test_background_and_dynamic_part_are_series_that_add_up(scan):
    found = reconstruct(scan[0], steps=15, extra_series="low_rank, sparse")
    low_rank, sparse = (series.images[:, 0] for series in found.extras)
    assert [series.name for series in found.extras] == ["low_rank", "sparse"]
    torch.testing.assert_close(low_rank + sparse, found.image, rtol=0, atol=1e-5 * float(found.image.abs().max()))
    assert float(sparse.mean(0).abs().max()) < 1e-5 * float(found.image.abs().max())


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        (
            "networks",
            [
                "low rank plus sparse",
                "total variation",
                "some lines left out",
                "networks learn",
                "last fit to the data",
            ],
        ),
        ("low_rank_sparse", ["low rank plus sparse", "some lines left out"]),
    ],
)
def test_progress_names_every_stage_and_never_goes_back(scan, method, stages):
    heard: list[tuple[str, float]] = []

    def hear(text: str) -> None:
        what, _, rest = text.partition(": ")
        heard.append((what, float(rest.partition(" ")[0])))

    ticks = count(0, 10)
    with reporting(hear, lambda: next(ticks)):
        reconstruct(scan[0], method=method, steps=15)
    assert list(dict.fromkeys(what for what, _ in heard)) == stages
    percents = [percent for _, percent in heard]
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert 90 < percents[-1] <= 100


def test_spokes_are_reconstructed_as_well():
    prepared, truth = radial_cine()
    plain = reconstruct(prepared, method="low_rank_sparse")
    taught = reconstruct(prepared, steps=60)
    assert error(plain.image, truth) < 0.25
    assert error(taught.image, truth) < error(plain.image, truth)


def test_a_single_coil_needs_no_calibration(scan):
    prepared, truth = cartesian_cine(lines=32, coils=1)
    bare = Prepared(prepared.kspace, prepared.counts, None, prepared.noise_std, True, prepared.readout_sampled)
    assert error(reconstruct(bare, steps=15).image, truth) < 0.3


def test_a_time_limit_ends_early_with_an_image(scan):
    found = reconstruct(scan[0], time_limit_s=1e-3)
    assert bool(torch.isfinite(found.image.abs()).all())
    assert int(found.details["ReconIterations"]) == 0
    assert found.warnings == ("The time limit of 0.001 s ended the reconstruction early.",)


def test_noise_alone_gives_images_without_failure(scan):
    prepared, _ = scan
    empty = Prepared(
        torch.zeros_like(prepared.kspace), prepared.counts, prepared.calibration, 0.0, True, prepared.readout_sampled
    )
    found = reconstruct(empty, steps=15)
    assert bool(torch.isfinite(found.image.abs()).all())
    assert bool(torch.isfinite(found.deviation).all())


def test_what_cannot_be_reconstructed_is_refused_with_the_reason(scan):
    prepared, _ = scan

    def some(frames: slice) -> Prepared:
        return Prepared(
            prepared.kspace[frames], prepared.counts[frames], prepared.calibration, 0.02, True, prepared.readout_sampled
        )

    with pytest.raises(ReconstructionError, match="1 frame of the slice, but at least 3"):
        reconstruct(some(slice(1)))
    with pytest.raises(ReconstructionError, match="all frames leave out the same lines"):
        reconstruct(cartesian_cine(same=True)[0])
    with pytest.raises(ReconstructionError, match="all frames leave out the same lines"):
        reconstruct(radial_cine(same=True)[0])
    bare = Prepared(prepared.kspace, prepared.counts, None, 0.02, True, prepared.readout_sampled)
    with pytest.raises(ReconstructionError, match="to estimate coil maps from"):
        reconstruct(bare)
    with pytest.raises(ReconstructionError, match="too few to hold some out"):
        reconstruct(only_centre())


def only_centre() -> Prepared:
    """Frames with nothing but the centre, and one line more in one of them: patterns differ, and little is left."""
    prepared, _ = cartesian_cine(lines=CENTRAL)
    counts = prepared.counts.clone()
    counts[0, 0, 3] = 1
    return Prepared(prepared.kspace, counts, prepared.calibration, 0.02, True, prepared.readout_sampled)


def test_a_frame_without_lines_is_named(scan):
    prepared, _ = scan
    counts = prepared.counts.clone()
    counts[4] = 0
    holey = Prepared(prepared.kspace, counts, prepared.calibration, 0.02, True, prepared.readout_sampled)
    with pytest.raises(ReconstructionError, match="frame 5 of 10 has no line"):
        reconstruct(holey)


def test_the_start_knows_the_noise(scan):
    start = make_start(scan[0])
    assert start.noise == start.system.noise_std
    found = classic(start, start.system, 20)
    assert found.iterations <= 20
