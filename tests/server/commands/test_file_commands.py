"""`simulate`, `inspect`, `send` and `view` as a user runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import matplotlib.image
import nibabel
import numpy as np
import pytest

from server.scan_file import open_scan

Run = Callable[..., Any]


@pytest.fixture
def scan_file(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "scan.h5"
    outcome = run("simulate", "--anatomy", "phantom", "--matrix", 32, "--slices", 2, "--coils", 3, "--acceleration", 2,
                  "--calibration", 8, "--output", path, "--truth", tmp_path / "truth.h5")  # fmt: skip
    assert outcome.status == 0, outcome.errors
    assert outcome.lines == [str(tmp_path / "truth.h5"), str(path)]
    return path


@pytest.mark.parametrize("command", ["send", "simulate", "inspect", "view", "demo"])
def test_help_shows_a_complete_example_and_the_exit_statuses(run: Run, command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.status == 0
    assert f"echotrain {command} " in outcome.output
    assert "Exit statuses: 0" in outcome.output


def test_simulated_file_is_read_by_ismrmrd_python(scan_file: Path) -> None:
    with ismrmrd.Dataset(scan_file, mode="r") as dataset:
        header = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
        assert header.encoding[0].reconSpace.matrixSize.x == 32
        assert dataset.read_acquisition(40).active_channels == 3


def test_simulate_takes_arrays_and_nifti(run: Run, tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((3, 20, 24)).astype(np.float32)
    np.save(tmp_path / "object.npy", volume)
    # RAS: the first axis to the right, the second to the front; MRD has columns to the left and rows to the back.
    stored = volume[:, ::-1, ::-1].transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), tmp_path / "object.nii.gz")
    truths = []
    for name in ("object.npy", "object.nii.gz"):
        truth = tmp_path / f"{name}.truth.h5"
        outcome = run("simulate", "--anatomy", tmp_path / name, "--noise", 0, "--coils", 2, "--output",
                      tmp_path / "scan.h5", "--truth", truth)  # fmt: skip
        assert outcome.status == 0, outcome.errors
        with ismrmrd.Dataset(truth, mode="r") as dataset:
            truths.append(np.stack([dataset.read_image("image_1", n).data[0, 0] for n in range(3)]))
    np.testing.assert_allclose(truths[0], volume / volume.max(), atol=1e-6)
    np.testing.assert_allclose(truths[0], truths[1], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--output", "scan.h5", "--anatomy", "nowhere.npy"], 1, "there is no file nowhere.npy"),
        (["--output", "scan.h5", "--partial-fourier", "0.2"], 2, "partial_fourier"),
        ([], 2, "nothing to do"),
        (["--output", "scan.h5", "--coils", "0"], 2, "coils"),
    ],
)
def test_simulate_says_what_is_wrong(
    run: Run, arguments: list[str], status: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("simulate", *arguments)
    assert outcome.status == status
    assert said in outcome.errors
    assert "Traceback" not in outcome.errors


def test_inspect_names_flags_encoding_and_noise(run: Run, scan_file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "sampling.png"
    outcome = run("inspect", scan_file, "--png", picture)
    assert outcome.status == 0, outcome.errors
    for text in ("64 x 32 x 1", "32 x 32 x 1", "2 x 1", "embedded", "IS_NOISE_MEASUREMENT", "0 to 1; header: 0 to 1",
                 "IS_PARALLEL_CALIBRATION_AND_IMAGING", "3 channels, 64 samples, centre at sample 32",
                 # 64 x 32 samples of 3 channels at 8 bytes are 48 KiB; two slices
                 "memory of a group, 3 channels", "slice 48.0 KiB, cine 48.0 KiB, stack 96.0 KiB;"):  # fmt: skip
        assert text in outcome.output
    assert matplotlib.image.imread(picture).shape[2] == 4
    assert "root of E|n|^2, 8192 samples at 7.5 us" in outcome.output


def test_inspect_shows_nothing_about_the_patient(run: Run, scan_file: Path) -> None:
    with h5py.File(scan_file, "r+") as file:
        xml = file["dataset/xml"][0].decode()
        subject = "<subjectInformation><patientName>Doe^Jane</patientName></subjectInformation><measurementInformation>"
        file["dataset/xml"][0] = xml.replace("<measurementInformation>", subject, 1)
    outcome = run("inspect", scan_file)
    assert outcome.status == 0, outcome.errors
    assert "Doe" not in outcome.output + outcome.errors


def test_files_that_are_no_scan_are_refused_plainly(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    for command in ("inspect", "send", "view"):
        outcome = run(command, tmp_path / "text.h5")
        assert outcome.status == 1
        assert "is not an HDF5 file" in outcome.errors
        assert "Traceback" not in outcome.errors


def test_send_saves_images_picture_and_nifti(run: Run, scan_file: Path, scripted: Any, tmp_path: Path) -> None:
    images, picture = tmp_path / "out" / "images.h5", tmp_path / "images.png"
    outcome = run("send", scan_file, "--port", scripted.port, "--pipeline", "sense", "--output", images, "--png",
                  picture, "--nifti", "--parameter", "iterations=7")  # fmt: skip
    assert outcome.status == 0, outcome.errors
    written = [Path(line) for line in outcome.lines]
    assert [path.name for path in written] == [
        "images.h5", "images_image_1.nii.gz", "images_image_2.nii.gz", "images.png",
    ]  # fmt: skip
    assert all(path.stat().st_size > 0 for path in written)
    with open_scan(scan_file) as scan:
        assert scripted.readouts == scan.n_readouts
    assert '"iterations": "7"' in scripted.configs[0]
    with ismrmrd.Dataset(images, mode="r") as dataset:
        assert dataset.number_of_images("image_2") == 2
    assert nibabel.load(written[1]).shape == (32, 32, 2)
    assert "4 images received" in outcome.errors


@pytest.mark.parametrize("has_header", [True, False])
def test_send_sends_a_file_of_images_as_an_image_session(
    run: Run, scan_file: Path, scripted: Any, tmp_path: Path, has_header: bool
) -> None:
    truth = tmp_path / "truth.h5"
    if not has_header:
        with h5py.File(truth, "r+") as file:
            del file["dataset/xml"]
    outcome = run("send", truth, "--port", scripted.port, "--pipeline", "pass_through", "--output",
                  tmp_path / "images.h5")  # fmt: skip
    assert outcome.status == 0, outcome.errors
    assert scripted.readouts == 0
    assert len(scripted.received_images) == 2
    with ismrmrd.Dataset(truth, mode="r") as dataset:
        for number, image in enumerate(scripted.received_images):
            np.testing.assert_array_equal(image.pixels, dataset.read_image("image_1", number).data)
    assert scripted.headers[0].startswith(b"<?xml" if has_header else b"Dummy XML header")
    assert "4 images received" in outcome.errors


def test_send_keeps_the_images_of_a_session_that_failed(
    run: Run, scan_file: Path, scripted: Any, tmp_path: Path
) -> None:
    scripted.error_text = "ERROR reconstruction_failed: slice 1 holds no data. Repeat the scan."
    outcome = run("send", scan_file, "--port", scripted.port, "--output", tmp_path / "images.h5")
    assert outcome.status == 1
    assert "slice 1 holds no data" in outcome.errors
    assert (tmp_path / "images.h5").exists()


def test_send_fails_when_the_server_does_not_close(run: Run, scan_file: Path, scripted: Any, tmp_path: Path) -> None:
    scripted.says_close = False
    outcome = run("send", scan_file, "--port", scripted.port, "--output", tmp_path / "images.h5")
    assert outcome.status == 1
    assert "without CLOSE after 4 images" in outcome.errors


def test_send_without_a_server_says_how_to_start_one(run: Run, scan_file: Path, tmp_path: Path) -> None:
    outcome = run("send", scan_file, "--port", 1, "--output", tmp_path / "images.h5")
    assert outcome.status == 1
    assert "no server answers at 127.0.0.1 port 1" in outcome.errors
    assert "echotrain serve" in outcome.errors
    assert not (tmp_path / "images.h5").exists()


@pytest.mark.parametrize("name", ["images.h5", "file/images.h5"])
def test_send_says_that_images_cannot_be_kept_before_it_sends(
    run: Run, scan_file: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "images.h5").mkdir()
    (tmp_path / "file").write_text("a file where a folder is needed")
    outcome = run("send", scan_file, "--port", 1, "--output", tmp_path / name)
    assert outcome.status == 1
    assert str(tmp_path / name) in outcome.errors
    assert "no server" not in outcome.errors


def test_send_refuses_a_malformed_parameter(run: Run, scan_file: Path) -> None:
    outcome = run("send", scan_file, "--parameter", "iterations")
    assert outcome.status == 2
    assert "'iterations' is not of the form name=value" in outcome.errors


def test_simulate_streams_to_a_server(run: Run, scripted: Any, tmp_path: Path) -> None:
    outcome = run("simulate", "--anatomy", "phantom", "--matrix", 32, "--slices", 2, "--coils", 2, "--host",
                  "127.0.0.1", "--port", scripted.port, "--pipeline", "zero_filled",
                  "--images", tmp_path / "images.h5")  # fmt: skip
    assert outcome.status == 0, outcome.errors
    assert scripted.configs == ["zero_filled"]
    assert scripted.readouts == 32 + 2 * 32
    assert outcome.lines == [str(tmp_path / "images.h5")]


def test_view_compares_with_a_reference(run: Run, scan_file: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.h5"
    outcome = run("view", truth, "--reference", truth, "--output", tmp_path / "view.png")
    assert outcome.status == 0, outcome.errors
    assert "SSIM 1.0000, NRMSE 0.00 %" in outcome.output
    assert (tmp_path / "view.png").stat().st_size > 10_000


def test_view_refuses_a_reference_of_another_size(run: Run, scan_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    run(
        "simulate",
        "--anatomy",
        "phantom",
        "--matrix",
        40,
        "--slices",
        2,
        "--output",
        tmp_path / "s.h5",
        "--truth",
        other,
    )
    outcome = run("view", tmp_path / "truth.h5", "--reference", other)
    assert outcome.status == 1
    assert "the reference is" in outcome.errors


@pytest.mark.parametrize(
    ("arguments", "samples", "trajectory"),
    [
        (["--volume", "--slices", "8", "--acceleration", "2", "--acceleration-z", "2", "--caipi", "1"],
         64, "cartesian"),
        (["--volume", "--slices", "8", "--pattern", "random", "--acceleration", "3", "--elliptical",
          "--calibration", "4"], 64, "cartesian"),
        (["--trajectory", "radial", "--shots", "9"], 64, "radial"),
        (["--trajectory", "goldenangle", "--shots", "9", "--no-coordinates"], 64, "goldenangle"),
        (["--trajectory", "epi"], 64, "epi"),
        (["--echoes", "3", "--partial-echo", "0.75"], 48, "cartesian"),
    ],
)  # fmt: skip
def test_simulate_offers_other_kinds_of_scans(
    run: Run, tmp_path: Path, arguments: list[str], samples: int, trajectory: str
) -> None:
    path, truth = tmp_path / "scan.h5", tmp_path / "truth.h5"
    outcome = run("simulate", "--anatomy", "phantom", "--matrix", 32, "--coils", 2, "--output", path, "--truth", truth,
                  *arguments)  # fmt: skip
    assert outcome.status == 0, outcome.errors
    with ismrmrd.Dataset(path, mode="r") as dataset:
        encoding = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header()).encoding[0]
        last = dataset.read_acquisition(dataset.number_of_acquisitions() - 1)
    assert encoding.trajectory.value == trajectory
    assert last.number_of_samples == samples
    with ismrmrd.Dataset(truth, mode="r") as dataset:
        image = dataset.read_image("image_1", 0)
    assert image.data.shape[1:] == (8 if "--volume" in arguments else 1, 32, 32)


def test_simulate_writes_a_beating_heart_with_its_ecg(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cine.h5"
    outcome = run("simulate", "--anatomy", "heart", "--matrix", 32, "--coils", 2, "--beats", 3, "--output", path)
    assert outcome.status == 0, outcome.errors
    with open_scan(path) as scan:
        assert scan.n_waveforms > 20
        assert {int(waveform.header["waveform_id"]) for waveform in scan.waveforms()} == {0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--volume", "--echoes", "2"], "a volume and echoes cannot be simulated together"),
        (["--acceleration-z", "2"], "are for a --volume"),
        (["--beats", "2"], "frames of a heart cycle"),
        (["--trajectory", "spiral", "--acceleration", "2"], "undersampled with n_shots"),
        (["--trajectory", "other"], "kind must be radial, goldenangle or spiral"),
    ],
)
def test_simulate_refuses_what_does_not_go_together(run: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    outcome = run("simulate", "--anatomy", "phantom", "--matrix", 32, "--output", tmp_path / "scan.h5", *arguments)
    assert outcome.status == 2
    assert said in outcome.errors
