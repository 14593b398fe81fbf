"""Readouts, waveforms and images in both versions."""

from __future__ import annotations

from typing import Any

import mrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mrd import ACQUISITION_HEADER, Acquisitions, Image, Waveform
from server.errors import ConversionError
from server.losses import Losses
from server.mrd2 import items
from tests.server.wire import examples


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    if first.dtype.base == np.float32:  # which NaN it is does not survive a Python float
        return np.array_equal(first, second, equal_nan=True)
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def back(batch: Acquisitions, losses: Losses) -> list[Acquisitions]:
    return [items.readout_to_version_1(item.value, losses) for item in items.readouts_to_version_2(batch, losses)]


@settings(max_examples=60, deadline=None)
@given(examples.acquisitions())
def test_readouts_come_back_bit_for_bit_but_for_what_version_2_does_not_have(batch: Acquisitions) -> None:
    losses = Losses()
    again = back(batch, losses)

    assert len(again) == len(batch)
    for number, readout in enumerate(again):
        for name in ACQUISITION_HEADER.names or ():
            if name not in {"version", "available_channels", "channel_mask"}:
                assert same_bits(readout.headers[0][name], batch.headers[number][name]), name
        assert same_bits(readout.samples[0], batch.samples[number])
        if batch.trajectory is not None and batch.n_samples:
            assert readout.trajectory is not None
            assert same_bits(readout.trajectory[0], batch.trajectory[number])
    has_other_channels = bool((batch.headers["available_channels"] != batch.headers["active_channels"]).any())
    assert has_other_channels == any("available_channels" in sentence for sentence in losses)


def test_a_readout_of_version_2_has_the_arrays_of_its_documentation() -> None:
    batch = examples.readouts(1, coils=3, samples=5, dimensions=2)
    (item,) = items.readouts_to_version_2(batch, Losses())
    readout = item.value

    assert (readout.coils(), readout.samples(), readout.active_channels()) == (3, 5, 3)
    assert (readout.trajectory_dimensions(), readout.trajectory_samples()) == (2, 5)
    np.testing.assert_array_equal(readout.data, batch.complex_samples()[0])
    track = np.ascontiguousarray(batch.trajectory[0]).view(np.float32).reshape(5, 2)
    np.testing.assert_array_equal(readout.trajectory, track.T)


@pytest.mark.parametrize(
    ("channels", "order", "comes_back"),
    [([], [0, 1, 2], [0, 1, 2]), ([0, 1, 2], [0, 1, 2], [0, 1, 2]), ([1, 70, 1023], [1, 70, 1023], [1, 70, 1023])],
)
def test_a_channel_mask_becomes_the_channels_that_it_names(
    channels: list[int], order: list[int], comes_back: list[int]
) -> None:
    batch, losses = examples.readouts(1, coils=3), Losses()
    for channel in channels:
        batch.headers["channel_mask"][0, channel // 64] |= np.uint64(1 << channel % 64)

    (item,) = items.readouts_to_version_2(batch, losses)
    mask = items.readout_to_version_1(item.value, losses).headers["channel_mask"][0]

    assert item.value.head.channel_order == order
    assert np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist() == comes_back
    assert list(losses) == []


@pytest.mark.parametrize("channels", [[0], [0, 1, 2, 3]])
def test_a_channel_mask_of_another_number_of_channels_is_noted(channels: list[int]) -> None:
    batch, losses = examples.readouts(1, coils=3), Losses()
    batch.headers["channel_mask"][0, 0] = sum(1 << channel for channel in channels)

    (item,) = items.readouts_to_version_2(batch, losses)

    assert item.value.head.channel_order == [0, 1, 2]
    assert [sentence for sentence in losses if "channel_mask" in sentence]


@pytest.mark.parametrize("order", [[2, 1, 0], [0, 1], [0, 0, 1], [0, 1, 2000]])
def test_a_channel_order_that_is_no_mask_is_noted(order: list[int]) -> None:
    (item,) = items.readouts_to_version_2(examples.readouts(1, coils=3), Losses())
    item.value.head.channel_order = order
    losses = Losses()

    assert not items.readout_to_version_1(item.value, losses).headers["channel_mask"].any()
    assert list(losses) == ["readouts: MRD 1 cannot hold this channel_order; left out"]


def test_a_readout_without_optional_values_gets_zeros_and_its_middle_as_centre() -> None:
    losses = Losses()
    readout = items.readout_to_version_1(mrd.Acquisition(data=np.zeros((2, 9), np.complex64)), losses)

    header = readout.headers[0]
    assert (header["number_of_samples"], header["active_channels"], header["available_channels"]) == (9, 2, 2)
    assert header["center_sample"] == 4
    assert header["scan_counter"] == 0
    assert not header["idx"]["user"].any()
    assert list(losses) == ["readouts: center_sample is absent; the middle of the samples was put there"]


def test_more_user_values_than_version_1_holds_are_noted() -> None:
    losses = Losses()
    head = mrd.AcquisitionHeader(center_sample=0, user_int=list(range(9)), physiology_time_stamp=[1, 2, 3, 4])
    header = items.readout_to_version_1(mrd.Acquisition(head=head, data=np.zeros((1, 1), np.complex64)), losses).headers

    assert header["user_int"][0].tolist() == list(range(8))
    assert header["physiology_time_stamp"][0].tolist() == [1, 2, 3]
    assert losses.total == 2


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (mrd.AcquisitionHeader(idx=mrd.EncodingCounters(kspace_encode_step_1=65536)), "kspace_encode_step_1: MRD 1"),
        (mrd.AcquisitionHeader(idx=mrd.EncodingCounters(user=[65536])), "a user counter: MRD 1"),
        (mrd.AcquisitionHeader(discard_pre=70000), "discard_pre: MRD 1 counts to 65535, found 70000"),
    ],
)
def test_counters_that_version_1_cannot_count_are_refused(head: mrd.AcquisitionHeader, said: str) -> None:
    readout = mrd.Acquisition(head=head, data=np.zeros((1, 4), np.complex64))
    with pytest.raises(ConversionError, match=said):
        items.readout_to_version_1(readout, Losses())


def test_a_trajectory_of_another_length_is_refused() -> None:
    readout = mrd.Acquisition(data=np.zeros((1, 4), np.complex64), trajectory=np.zeros((2, 3), np.float32))
    with pytest.raises(ConversionError, match="4 samples has a trajectory of 3"):
        items.readout_to_version_1(readout, Losses())


@settings(max_examples=60, deadline=None)
@given(examples.waveforms())
def test_waveforms_come_back_with_their_id(waveform: Waveform) -> None:
    again = items.waveform_to_version_1(items.waveform_to_version_2(waveform).value)

    for name in waveform.header.dtype.names or ():
        if name != "version":
            assert same_bits(again.header[name], waveform.header[name]), name
    assert same_bits(again.samples, waveform.samples.astype("<u4"))


@settings(max_examples=60, deadline=None)
@given(examples.images())
def test_images_come_back_bit_for_bit_with_their_attributes(image: Image) -> None:
    losses = Losses()
    again = items.image_to_version_1(items.image_to_version_2(image, losses).value, losses)

    for name in image.header.dtype.names or ():
        if name not in {"version", "attribute_string_len"}:
            assert same_bits(again.header[name], image.header[name]), name
    assert again.pixels.dtype == image.pixels.dtype
    assert again.pixels.tobytes() == image.pixels.tobytes()
    assert again.meta == image.meta
    assert (losses.total == 0) == (1 <= int(image.header["image_type"]) <= 5)


def test_attributes_that_look_like_numbers_stay_texts() -> None:
    image = examples.image()
    image.meta["Note"] = ["007", "1e3", "1_0"]
    value = items.image_to_version_2(image, Losses()).value

    assert [type(case) for case in value.meta["Note"]] == [mrd.ImageMetaValue.String] * 3
    assert items.image_to_version_1(value, Losses()).meta["Note"] == ["007", "1e3", "1_0"]


def test_numbers_among_attributes_become_texts_and_are_noted() -> None:
    value: Any = items.image_to_version_2(examples.image(), Losses()).value
    value.meta = {"Echo": [mrd.ImageMetaValue.Int64(3), mrd.ImageMetaValue.Float64(0.1)], "Empty": []}
    losses = Losses()

    assert items.image_to_version_1(value, losses).meta == {"Echo": ["3", "0.1"]}
    assert losses.total == 2


@given(st.integers(6, 65535))
def test_an_image_type_without_a_name_in_version_2_is_kept_and_noted(number: int) -> None:
    image, losses = examples.image(), Losses()
    image.header["image_type"] = number
    value = items.image_to_version_2(image, losses).value

    assert int(items.image_to_version_1(value, losses).header["image_type"]) == number
    assert losses.total == 1
