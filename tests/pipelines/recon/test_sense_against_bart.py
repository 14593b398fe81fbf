"""BART as an independent oracle; `tests/benchmarks/sense_against_bart.py` compares quality on real data and time."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pipelines.parameters import SenseParameters
from pipelines.preprocess.sensitivities import estimate_maps
from pipelines.recon.sense import Sense

pytestmark = [
    pytest.mark.bart,
    pytest.mark.skipif(shutil.which("bart") is None, reason="Debian's bart is not on the PATH"),
]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """The benchmark script, whose simulation and wrapper are used here."""
    folder = Path(__file__).parents[2] / "benchmarks"
    spec = importlib.util.spec_from_file_location("sense_against_bart", folder / "sense_against_bart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    sys.modules["sense_against_bart"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(folder))


def test_maps_are_those_of_ecalib(benchmark: ModuleType, tmp_path: Path):
    scan, _ = benchmark.simulated(128, 8, 3, 0.02)
    bart = benchmark.Bart(tmp_path, threads=1)
    bart.write("kspace", scan.kspace.numpy())
    bart.run("ecalib", "-m1", "-r24", "-c0.8", "kspace", "maps")
    theirs = torch.from_numpy(bart.read("maps"))
    ours = estimate_maps(scan.prepared.calibration, (1, 128, 128))
    inside = scan.references["object"] > 0.1
    likeness = (ours.conj() * theirs).sum(0).abs()[inside]
    # Kernel threshold and interpolation differ; both are within 1 % of the truth.
    assert float((2 - 2 * likeness.clamp(max=1)).mean().sqrt()) < 0.01


@pytest.mark.parametrize("acceleration", [2, 4])
def test_error_is_no_more_than_three_per_cent_above_bart_at_its_best(
    benchmark: ModuleType, tmp_path: Path, acceleration: int
):
    scan, _ = benchmark.simulated(160, 8, acceleration, 0.03)
    bart = benchmark.Bart(tmp_path, threads=1)
    bart.write("kspace", scan.kspace.numpy())
    reference = scan.references["object"]
    theirs = []
    for regularisation in (0.01, 0.03, 0.1):
        benchmark.bart_sense(bart, regularisation)
        theirs.append(benchmark.errors(torch.from_numpy(bart.read("image"))[0], reference)[0])
    ours = benchmark.errors(Sense(SenseParameters(), "cpu")(scan.prepared).image[0], reference)[0]
    assert ours <= 1.03 * min(theirs)
