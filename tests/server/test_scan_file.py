"""Scans written to HDF5 and read back: ismrmrd-python is the independent oracle."""

from __future__ import annotations

from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest

from pipelines.mrd import ACQUISITION_HEADER, WAVEFORM_HEADER, Acquisitions, Waveform
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.errors import FileError
from server.scan_file import open_scan, write_scan

SIEMENS = Path("/work/shared/data/kspace/siemens_3t_phantom_14ch_r3_localonly.ismrmrd.h5")


@pytest.fixture
def scan() -> SimulatedScan:
    anatomy = np.random.default_rng(5).random((2, 20, 24)).astype(np.float32)
    return simulate(anatomy, Protocol(n_coils=3, noise_readouts=5, noise_samples=16))


def spiral(n: int) -> Acquisitions:
    rng = np.random.default_rng(6)
    headers = np.zeros(n, ACQUISITION_HEADER)
    headers["number_of_samples"], headers["active_channels"], headers["trajectory_dimensions"] = 7, 2, 3
    samples = rng.standard_normal((n, 2, 14)).astype(np.float32).view(np.complex64)
    return Acquisitions.from_arrays(headers, samples, rng.standard_normal((n, 7, 3)).astype(np.float32))


def test_ismrmrd_python_reads_what_was_written(scan: SimulatedScan, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    assert write_scan(path, scan.header, scan.batches) == scan.n_readouts
    with ismrmrd.Dataset(path, mode="r") as dataset:
        assert dataset.read_xml_header() == scan.header
        assert dataset.number_of_acquisitions() == scan.n_readouts
        number = 0
        for batch in scan.batches:
            for header, samples in zip(batch.headers, batch.complex_samples(), strict=True):
                if number % 11 == 0:
                    acquisition = dataset.read_acquisition(number)
                    assert bytes(acquisition.getHead()) == header.tobytes()
                    np.testing.assert_array_equal(acquisition.data, samples)
                number += 1


@pytest.mark.parametrize("readouts_per_block", [1, 7, 1000])
def test_reading_gives_back_what_was_written(scan: SimulatedScan, tmp_path: Path, readouts_per_block: int) -> None:
    path = tmp_path / "scan.h5"
    write_scan(path, scan.header, scan.batches)
    with open_scan(path) as file:
        batches = list(file.batches(readouts_per_block))
        assert (file.header, file.n_readouts, file.n_waveforms) == (scan.header, scan.n_readouts, 0)
    headers = np.concatenate([batch.headers for batch in batches])
    np.testing.assert_array_equal(headers, np.concatenate([batch.headers for batch in scan.batches]))
    read = b"".join(batch.samples.tobytes() for batch in batches)
    assert read == b"".join(batch.samples.tobytes() for batch in scan.batches)
    assert all(set(batch.headers["number_of_samples"]) == {batch.n_samples} for batch in batches)


def test_shapes_are_never_mixed_in_a_batch(scan: SimulatedScan, tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.h5", scan.header, [*scan.batches, spiral(3), *scan.batches[:1]])
    with open_scan(tmp_path / "scan.h5") as file:
        shapes = [(len(batch), batch.n_coils, batch.n_samples) for batch in file.batches()]
    assert shapes == [(5, 3, 16), (40, 3, 48), (3, 2, 7), (5, 3, 16)]


def test_trajectories_survive(tmp_path: Path) -> None:
    written = spiral(4)
    write_scan(tmp_path / "scan.h5", b"<ismrmrdHeader/>", [written])
    with open_scan(tmp_path / "scan.h5") as file:
        (read,) = file.batches()
    assert written.trajectory is not None
    assert read.trajectory is not None
    np.testing.assert_array_equal(read.trajectory, written.trajectory)
    with ismrmrd.Dataset(tmp_path / "scan.h5", mode="r") as dataset:
        expected = written.trajectory.view(np.float32).reshape(4, 7, 3)
        np.testing.assert_array_equal(dataset.read_acquisition(2).traj, expected[2])


def test_files_of_ismrmrd_python_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "foreign.h5"
    arrays = [rng.standard_normal((2, 2 * n)).astype(np.float32).view(np.complex64) for n in (6, 6, 8)]
    with ismrmrd.Dataset(path) as dataset:
        dataset.write_xml_header(b"<ismrmrdHeader/>")
        for number, array in enumerate(arrays):
            dataset.append_acquisition(ismrmrd.Acquisition.from_array(array, scan_counter=number))
        waveform = ismrmrd.Waveform.from_array(np.arange(6, dtype=np.uint32).reshape(2, 3))
        dataset.append_waveform(waveform)
    with open_scan(path) as file:
        batches, waveforms = list(file.batches()), list(file.waveforms())
    assert [len(batch) for batch in batches] == [2, 1]
    np.testing.assert_array_equal(batches[0].complex_samples(), np.stack(arrays[:2]))
    np.testing.assert_array_equal(batches[1].complex_samples()[0], arrays[2])
    np.testing.assert_array_equal(waveforms[0].samples, [[0, 1, 2], [3, 4, 5]])


def test_waveforms_survive(tmp_path: Path) -> None:
    header = np.zeros((), WAVEFORM_HEADER)
    header["channels"], header["number_of_samples"], header["waveform_id"] = 2, 3, 1
    written = Waveform(header, np.arange(6, dtype=np.uint32).reshape(2, 3))
    write_scan(tmp_path / "scan.h5", b"<ismrmrdHeader/>", [], [written, written])
    with open_scan(tmp_path / "scan.h5") as file:
        read = list(file.waveforms())
        assert list(file.batches()) == []
    assert len(read) == 2
    assert read[1].header == header
    np.testing.assert_array_equal(read[1].samples, written.samples)


@pytest.mark.localdata
def test_file_of_a_real_scanner_agrees_with_ismrmrd_python() -> None:
    if not SIEMENS.exists():
        pytest.skip("needs the local Siemens file")
    with open_scan(SIEMENS) as file, ismrmrd.Dataset(SIEMENS, mode="r") as dataset:
        number = 0
        for batch in file.batches():
            for header, samples in zip(batch.headers, batch.complex_samples(), strict=True):
                acquisition = dataset.read_acquisition(number)
                assert bytes(acquisition.getHead()) == header.tobytes()
                np.testing.assert_array_equal(acquisition.data, samples)
                number += 1
        assert number == dataset.number_of_acquisitions() == file.n_readouts


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no file"), open_scan(tmp_path / "none.h5"):
        pass
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(FileError, match="not an HDF5 file"), open_scan(tmp_path / "text.h5"):
        pass
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_group("other")
    with pytest.raises(FileError, match="no scan"), open_scan(tmp_path / "empty.h5"):
        pass
    with pytest.raises(FileError, match="no group 'scan'; it has: other"), open_scan(tmp_path / "empty.h5", "scan"):
        pass


def test_readout_that_contradicts_its_header_is_named(scan: SimulatedScan, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_scan(path, scan.header, scan.batches)
    with h5py.File(path, "r+") as file:
        row = file["dataset/data"][9:10]
        row["data"][0] = row["data"][0][:-2]
        file["dataset/data"][9:10] = row
    with pytest.raises(FileError, match="readout 9 holds 286 floats, its header says 288"), open_scan(path) as damaged:
        list(damaged.batches())


def test_the_only_group_with_a_header_is_found(scan: SimulatedScan, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_scan(path, scan.header, scan.batches)
    with h5py.File(path, "r+") as file:
        file.move("dataset", "measurement")
    with open_scan(path) as found:
        assert found.n_readouts == scan.n_readouts
