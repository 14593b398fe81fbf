import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.preprocess.coils import compress, compression_matrix


def random_signal(seed, n_coils, rank):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn((n_coils, rank), generator=generator, dtype=torch.complex64)
    return left @ torch.randn((rank, 200), generator=generator, dtype=torch.complex64)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), n_coils=st.integers(1, 12), n_virtual=st.integers(1, 14))
def test_rows_are_orthonormal_so_that_noise_stays_white(seed, n_coils, n_virtual):
    matrix = compression_matrix(random_signal(seed, n_coils, n_coils), n_virtual)

    kept = min(n_virtual, n_coils)
    assert matrix.shape == (kept, n_coils)
    torch.testing.assert_close(matrix @ matrix.mH, torch.eye(kept, dtype=torch.complex64), atol=1e-5, rtol=0)


def test_signal_of_low_rank_survives_whole():
    signal = random_signal(1, 8, 3)

    virtual = compress(signal.reshape(8, 1, 10, 20), compression_matrix(signal, 3))

    assert float(virtual.abs().square().sum()) == pytest.approx(float(signal.abs().square().sum()), rel=1e-4)


def test_the_same_data_give_the_same_matrix_bit_by_bit():
    signal = random_signal(2, 6, 6)

    first, second = compression_matrix(signal, 4), compression_matrix(signal.clone(), 4)

    assert np.array_equal(first.numpy(), second.numpy())
