"""The store of noise measurements: found again, for a time, under any id, on a disk that fails; and its files."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.assembly.frame import NoiseCovariance, NoiseSource
from pipelines.scan_header import ScanHeader
from pipelines.scan_relations import CoilLabel
from server import noise_store
from server.errors import FileError
from server.noise_file import StoredNoise, read_noise, write_noise
from server.noise_store import NoiseStore, stored_noise

HOSTILE = ["/etc/passwd", "../../x", "..", ".", "", "a\0b", "x" * 10_000, "\ud800", "Ünïcödé 编号", "~", "salt", "con:"]


class Clock:
    def __init__(self, now: float = 1e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def measured(n_coils: int = 3, seed: int = 0, **changes: Any) -> StoredNoise:
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((4, n_coils, 50)) + 1j * rng.standard_normal((4, n_coils, 50))
    labels = tuple(CoilLabel(10 + n, f"Head:1:H{n}") for n in range(n_coils))
    return replace(StoredNoise(replace(NoiseCovariance.of(samples, 20.0), bandwidth=0.793), labels, 0.0), **changes)


def is_same(one: StoredNoise | None, other: StoredNoise) -> bool:
    return (
        one is not None
        and one.covariance.sums.tobytes() == other.covariance.sums.tobytes()
        and (one.covariance.n_samples, one.covariance.sample_time_us) == (200, 20.0)
        and one.covariance.bandwidth == other.covariance.bandwidth
        and one.coil_labels == other.coil_labels
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "noise"


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "salt")


@pytest.mark.parametrize("on_disk", [False, True])
def test_noise_is_found_under_its_id_as_that_of_an_earlier_scan(directory: Path, on_disk: bool) -> None:
    store, noise = NoiseStore(directory if on_disk else None), measured()
    assert store.keep("1_2_3", noise) == []
    assert is_same(store.find("1_2_3"), noise)
    assert store.find("1_2_3").covariance.source is NoiseSource.DEPENDENCY
    assert store.find("1_2_4") is None


def test_what_is_on_disk_outlives_the_server_and_is_shared(directory: Path) -> None:
    first, second = NoiseStore(directory), NoiseStore(directory)
    first.keep("a", measured(seed=1))
    assert is_same(second.find("a"), measured(seed=1))
    assert is_same(NoiseStore(directory).find("a"), measured(seed=1))


def test_a_second_measurement_takes_the_place_of_the_first(directory: Path) -> None:
    store = NoiseStore(directory)
    store.keep("a", measured(seed=1))
    store.keep("a", measured(seed=2))
    assert is_same(store.find("a"), measured(seed=2))
    assert is_same(NoiseStore(directory).find("a"), measured(seed=2))
    assert len(files(directory)) == 1


@pytest.mark.parametrize("on_disk", [False, True])
def test_noise_expires_and_its_file_goes(directory: Path, on_disk: bool) -> None:
    clock = Clock()
    store = NoiseStore(directory if on_disk else None, expiry_s=100, clock=clock)
    store.keep("old", measured())
    clock.now += 99
    store.keep("new", measured())
    assert store.find("old") is not None
    clock.now += 1
    assert store.find("old") is None
    assert store.find("new") is not None
    assert len(store) == 1
    if on_disk:
        assert len(files(directory)) == 1
        clock.now += 100
        NoiseStore(directory, expiry_s=100, clock=clock)
        assert files(directory) == []


def test_a_file_whose_date_was_changed_still_expires(directory: Path) -> None:
    clock = Clock()
    NoiseStore(directory, expiry_s=100, clock=clock).keep("a", measured())
    clock.now += 200
    os.utime(directory / files(directory)[0], (clock.now, clock.now))
    assert NoiseStore(directory, expiry_s=100, clock=clock).find("a") is None


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_oldest_make_room(directory: Path, on_disk: bool) -> None:
    clock = Clock()
    store = NoiseStore(directory if on_disk else None, most_entries=3, clock=clock)
    for number in range(5):
        clock.now += 1
        store.keep(str(number), measured())
    store.sweep()
    assert [store.find(str(number)) is not None for number in range(5)] == [False, False, True, True, True]
    assert len(store) == 3
    if on_disk:
        assert len(files(directory)) == 3


def test_files_are_for_their_owner_only_and_never_named_after_an_id(directory: Path) -> None:
    store = NoiseStore(directory)
    for number, name in enumerate(HOSTILE):
        assert store.keep(name, measured(seed=number)) == []
    for number, name in enumerate(HOSTILE):
        assert is_same(store.find(name), measured(seed=number))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    names = files(directory)
    assert len(names) == len(HOSTILE)
    assert all(len(name) == 68 and set(name[:64]) <= set("0123456789abcdef") for name in names)
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert {path.name for path in directory.parent.iterdir()} == {"noise"}


def test_the_same_id_has_another_name_in_another_directory(tmp_path: Path) -> None:
    names = set()
    for number in range(2):
        NoiseStore(tmp_path / str(number)).keep("PATIENT_1", measured())
        names |= set(files(tmp_path / str(number)))
    assert len(names) == 2


def test_no_id_stands_in_the_directory(directory: Path) -> None:
    NoiseStore(directory).keep("CANARY_4711", measured())
    assert all(b"CANARY" not in path.read_bytes() for path in directory.iterdir())


@pytest.mark.parametrize("damage", [b"", b"PK\3\4", b"not a zip at all" * 100, None, "cut"])
def test_a_damaged_file_is_left_out_and_replaced(directory: Path, damage: Any) -> None:
    failures: list[str] = []
    NoiseStore(directory).keep("a", measured())
    path = directory / files(directory)[0]
    if damage is None:
        path.unlink()
        path.symlink_to("/etc/passwd")
    else:
        path.write_bytes(path.read_bytes()[:-7] if damage == "cut" else damage)
    store = NoiseStore(directory, failed=failures.append)
    assert store.find("a") is None
    assert failures == ["read"]
    assert store.keep("a", measured(seed=5)) == []
    assert is_same(NoiseStore(directory).find("a"), measured(seed=5))
    assert not path.is_symlink()


def test_files_of_others_are_never_touched(directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o700)
    foreign = [directory / name for name in ("notes.txt", "noise.npz", f"{'g' * 64}.npz", ".hidden")]
    for path in foreign:
        path.write_text("mine")
        os.utime(path, (0, 0))
    store = NoiseStore(directory, most_entries=1)
    store.keep("a", measured())
    store.keep("b", measured())
    assert all(path.read_text() == "mine" for path in foreign)


def test_a_directory_that_others_use_is_neither_closed_to_them_nor_used(directory: Path) -> None:
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    (directory / "notes.txt").write_text("mine")
    failures: list[str] = []
    store = NoiseStore(directory, failed=failures.append)
    assert failures == ["write"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    (warning,) = store.keep("a", measured())
    assert "restart" in warning
    assert is_same(store.find("a"), measured())


def test_an_empty_directory_is_closed_to_others(directory: Path) -> None:
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    NoiseStore(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_what_a_killed_server_left_unfinished_goes_after_an_hour(directory: Path) -> None:
    clock = Clock()
    NoiseStore(directory, clock=clock)
    young, old = (directory / f".{'a' * 64}.npz.{digit * 16}" for digit in "01")
    for path, age in ((young, 10), (old, 4000)):
        path.write_bytes(b"half")
        os.utime(path, (clock.now - age, clock.now - age))
    NoiseStore(directory, clock=clock)
    assert files(directory) == [young.name]


def test_on_a_full_disk_memory_goes_on_and_the_caller_hears_of_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[str] = []
    store = NoiseStore(directory, failed=failures.append)
    store.keep("a", measured(seed=1))

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(noise_store, "_write_new", full)
    (warning,) = store.keep("a", measured(seed=2))
    assert "could not be saved" in warning
    assert failures == ["write"]
    assert is_same(store.find("a"), measured(seed=2))
    # What was there before is outdated: better none after a restart than that.
    assert files(directory) == []


def test_a_directory_that_disappears_is_no_reason_to_fail(directory: Path) -> None:
    failures: list[str] = []
    store = NoiseStore(directory, failed=failures.append)
    (directory / "salt").unlink()
    directory.rmdir()
    assert len(store.keep("a", measured())) == 1
    assert is_same(store.find("a"), measured())
    assert store.find("b") is None
    assert set(failures) == {"read", "write"}


def test_a_damaged_salt_is_replaced(directory: Path) -> None:
    NoiseStore(directory).keep("a", measured())
    (directory / "salt").write_bytes(b"short")
    store = NoiseStore(directory)
    assert store.find("a") is None
    store.keep("a", measured())
    assert is_same(NoiseStore(directory).find("a"), measured())


def test_the_directory_lists_what_it_holds_newest_first(directory: Path) -> None:
    clock = Clock()
    store = NoiseStore(directory, clock=clock)
    for number in range(3):
        clock.now += 1
        store.keep(str(number), measured(seed=number))
    (directory / files(directory)[0]).write_bytes(b"broken")
    found = [noise for _, noise in stored_noise(directory)]
    assert len(found) == 3
    good = [noise.measured_at for noise in found if isinstance(noise, StoredNoise)]
    assert good == sorted(good, reverse=True)
    assert sum(isinstance(noise, FileError) for noise in found) == 1


# ---- the file


@given(n_coils=st.integers(1, 6), n_labels=st.integers(0, 7), seed=st.integers(0, 99), has_bandwidth=st.booleans())
def test_a_file_holds_what_was_written(n_coils: int, n_labels: int, seed: int, has_bandwidth: bool) -> None:
    noise = measured(n_coils, seed)
    labels = tuple(CoilLabel(n - 1, f"Köil {n}" * n) for n in range(n_labels))
    covariance = noise.covariance if has_bandwidth else replace(noise.covariance, bandwidth=None)
    noise = replace(noise, coil_labels=labels, covariance=covariance, measured_at=12.5)
    back = read_noise(write_noise(noise))
    assert is_same(back, noise)
    assert back.measured_at == 12.5
    assert back.covariance.source is NoiseSource.DEPENDENCY


def test_numpy_alone_reads_a_file(tmp_path: Path) -> None:
    noise = measured()
    (tmp_path / "noise.npz").write_bytes(write_noise(noise))
    with np.load(tmp_path / "noise.npz") as arrays:
        sigma = np.sqrt(arrays["sums"].diagonal().real / (arrays["n_samples"] - 1))
        assert arrays["coil_names"].tolist() == [label.name for label in noise.coil_labels]
    np.testing.assert_allclose(sigma, noise.sigmas())
    np.testing.assert_allclose(sigma, np.sqrt(2), rtol=0.2)


WHOLE = write_noise(measured())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_damage_is_found_or_harmless(data: st.DataObject) -> None:
    broken = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(WHOLE) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(WHOLE)) | st.none())
    try:
        noise = read_noise(bytes(broken[:cut]))
    except FileError:
        return
    assert np.isfinite(noise.covariance.sums).all()
    assert noise.covariance.sums.shape == (3, 3)


def repacked(**changes: Any) -> bytes:
    import io

    with np.load(io.BytesIO(WHOLE)) as arrays:
        content = dict(arrays) | changes
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in content.items() if value is not None})
    return file.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"sums": np.zeros((3, 2), complex)},
        {"sums": np.zeros((0, 0), complex)},
        {"sums": np.eye(3, dtype=np.complex64)},
        {"sums": np.full((3, 3), np.nan, complex)},
        {"sums": -np.eye(3, dtype=complex)},
        {"sums": np.triu(np.ones((3, 3), complex))},
        {"sums": None},
        {"n_samples": 0},
        {"n_samples": np.zeros(3)},
        {"measured_at": np.inf},
        {"coil_names": np.array(["a"])},
        {"coil_names": np.array(["a", "b", None], object)},
    ],
)
def test_impossible_contents_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FileError):
        read_noise(repacked(**changes))


def test_a_file_that_claims_more_than_it_has_costs_no_memory() -> None:
    import io
    import zipfile

    header = b"{'descr': '<c16', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("sums.npy", array if method == zipfile.ZIP_STORED else array + bytes(1 << 20))
        with pytest.raises(FileError):
            read_noise(file.getvalue())


# ---- coils of another scan


def labels(*names: str) -> tuple[CoilLabel, ...]:
    return tuple(CoilLabel(number, name) for number, name in enumerate(names))


def test_channels_in_another_order_are_put_in_the_order_of_the_scan() -> None:
    noise = measured(coil_labels=labels("A", "B", "C"))
    covariance, warnings = noise.for_scan(ScanHeader((), coil_labels=labels("C", "A", "B")))
    order = [2, 0, 1]
    np.testing.assert_array_equal(covariance.sums, noise.covariance.sums[np.ix_(order, order)])
    assert warnings == []
    assert (covariance.n_samples, covariance.bandwidth) == (200, 0.793)


def test_the_same_channels_in_the_same_order_are_taken_as_they_are() -> None:
    noise = measured(coil_labels=labels("A", "B", "C"))
    for now in (noise.coil_labels, tuple(CoilLabel(label.number + 7, label.name) for label in noise.coil_labels)):
        covariance, warnings = noise.for_scan(ScanHeader((), coil_labels=now))
        assert covariance is noise.covariance
        assert warnings == []


@pytest.mark.parametrize("now", [labels("A", "B", "X"), labels("A", "B"), (), labels("A", "A", "B")])
def test_other_labels_leave_the_order_with_a_warning(now: tuple[CoilLabel, ...]) -> None:
    noise = measured(coil_labels=labels("A", "B", "C"))
    covariance, (warning,) = noise.for_scan(ScanHeader((), coil_labels=now))
    assert covariance is noise.covariance
    assert "do not match" in warning


def test_labels_for_more_channels_than_there_are_cannot_order_them() -> None:
    noise = measured(coil_labels=labels("A", "B", "C", "D"))
    covariance, (warning,) = noise.for_scan(ScanHeader((), coil_labels=labels("D", "C", "B", "A")))
    assert covariance is noise.covariance
    assert "4 for 3 channels" in warning
