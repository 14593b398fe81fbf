"""Gated phases of a slice reach `sense` together: one that lacks lines at the centre has maps all the same."""

from __future__ import annotations

import numpy as np

from pipelines.assembly.assembly import make_assembly
from pipelines.assembly.buffer import HeapSlots
from pipelines.phantom import beating_heart
from pipelines.pipeline import Pipeline
from pipelines.registry import find
from pipelines.scan_header import parse_scan_header
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.free_running import Heart, simulate_free_running

PHASES = 10


def test_a_phase_without_all_central_lines_is_reconstructed_with_the_maps_of_all():
    heart = Heart(n_phases=20, n_beats=7)
    anatomy = beating_heart(20, 48, 48)[:, None]
    scan = simulate_free_running(Protocol(n_coils=6, noise_std=0.005), heart, anatomy=anatomy).scan
    entry, parameters = find("sense"), {"cardiac_phases": PHASES}
    values = entry.parse(parameters).model_dump()
    header = parse_scan_header(scan.header)
    assembly = make_assembly(header, entry.grouping, HeapSlots(), None, values, gated=entry.gated_grouping)
    for waveform in scan.waveforms:
        assembly.add_waveform(waveform)
    groups = [group for batch in scan.batches for group in assembly.add(batch)] + assembly.finish()

    (group,) = groups
    assert group.kspace.shape[0] == PHASES
    assert (group.counts[:, 0, 16:32] == 0).any()
    magnitudes = Pipeline("sense", parameters, "cpu")(group, {}).images[::2]
    assert [int(image.header["phase"]) for image in magnitudes] == list(range(PHASES))
    assert all(np.isfinite(image.pixels).all() and image.pixels.max() > 0 for image in magnitudes)
