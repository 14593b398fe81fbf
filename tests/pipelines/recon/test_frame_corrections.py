"""Networks that learn from lines held out: what they begin with, when they change nothing, what they keep apart."""

from __future__ import annotations

import pytest
import torch

from models.deep_prior import DeepPriorConfiguration
from pipelines.recon.cine_start import make_start
from pipelines.recon.frame_corrections import CHANNELS, FrameCorrections, Part, best_share
from pipelines.recon.frame_lines import hold_out, measured_lines, with_lines
from tests.pipelines.recon.cine_scenes import cartesian_cine, coil_images, complex_noise

TINY = DeepPriorConfiguration((8, 8), skip=4, inputs=CHANNELS)


@pytest.fixture(scope="module")
def start():
    return make_start(cartesian_cine(noise_std=0.01)[0])


@pytest.fixture(scope="module")
def truth(start):
    """Frames as rows in the units of the system, without noise."""
    images = (coil_images()[0] * start.maps.conj()).sum(1) / start.scale
    return start.system.to_rows(images)


def parts_of(start, frames, classic=None):
    prepared = start.prepared
    return [
        Part(start.system_of(with_lines(prepared, held)), frames, frames if classic is None else classic)
        for held in hold_out(prepared, 0.12, 3, 0)
        if bool((held & measured_lines(prepared)).any())
    ]


def test_the_best_share_is_the_minimum_over_all_lines_held_out(start, truth):
    one, other = (truth + 0.02 * complex_noise(*truth.shape, seed=seed) for seed in (1, 2))
    parts = parts_of(start, one, other)
    share = best_share(parts)
    assert 0.2 < share < 0.8

    def misfit(at: float) -> float:
        total = 0.0
        for part in parts:
            mixed = torch.lerp(part.frames, part.classic, at)
            fitted = part.held.normal(mixed) - 2 * part.held.right_side
            total += float((mixed.conj() * fitted).real.sum(dtype=torch.float64))
        return total

    assert misfit(share) < min(misfit(share + 0.05), misfit(share - 0.05), misfit(0.0), misfit(1.0))


def test_the_share_stays_between_nothing_and_all(start, truth):
    wrong = truth + complex_noise(*truth.shape)
    assert best_share(parts_of(start, truth, truth)) == 0
    assert best_share(parts_of(start, truth, wrong)) < 0.01
    assert best_share(parts_of(start, wrong, truth)) > 0.99


@pytest.mark.parametrize("is_stopped", [True, False])
def test_networks_that_learned_nothing_change_nothing(start, truth, is_stopped):
    corrections = FrameCorrections(start.system, truth, TINY, seed=0)
    # The frames are the truth: whatever is changed fits the lines held out worse.
    learned = corrections.learn(parts_of(start, truth), steps=10, should_stop=lambda: is_stopped)
    assert learned.steps == (0 if is_stopped else 10)
    assert learned.best == 0
    background, dynamic = corrections(truth, truth)
    torch.testing.assert_close(background + dynamic, truth, rtol=0, atol=1e-6)


def test_learning_tells_its_steps_and_fits_the_lines_held_out_better(start, truth):
    smooth = start.system.to_images(truth)
    blurred = start.system.to_rows((smooth + smooth.roll(1, -1) + smooth.roll(-1, -1)) / 3)
    corrections = FrameCorrections(start.system, blurred, TINY, seed=0)
    told: list[tuple[int, int]] = []
    learned = corrections.learn(
        parts_of(start, blurred), steps=45, on_step=lambda step, steps: told.append((step, steps))
    )
    assert told == [(step, 45) for step in range(1, 46)]
    assert learned.best > 0
    assert learned.gain > 0.02


def test_it_learns_the_same_inside_inference_mode(start, truth):
    def learn() -> torch.Tensor:
        corrections = FrameCorrections(start.system, truth, TINY, seed=3)
        corrections.learn(parts_of(start, truth + 0.05 * complex_noise(*truth.shape)), steps=5)
        return sum(corrections(truth, truth))

    outside = learn()
    with torch.inference_mode():
        inside = learn()
    assert torch.equal(outside, inside)
