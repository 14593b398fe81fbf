"""Measurement noise propagated through the least-squares reconstruction: standard deviation of the magnitude.

The reconstruction `x = (N + w)^-1 A^H y`, with `N = A^H A` and Tikhonov weight w, turns white noise of variance s^2 a
readout into noise of covariance

    s^2 (N + w)^-1 N (N + w)^-1 = s^2 (B - w B^2),    B = (N + w)^-1,

whose diagonal is the variance of each pixel, g-factor included (Pruessmann 1999,
doi 10.1002/(SICI)1522-2594(199911)42:5<952::AID-MRM16>3.0.CO;2-S). `N` couples only pixels that the sampling lets
alias onto each other, which gives three ways to get that diagonal:

1. *Alias sets*: one phase-encoding axis whose sampling repeats with a short period q (full sampling: q = 1). Only q
   pixels couple; their q x q systems are inverted exactly for every pixel of the image.
2. *Columns*: one phase-encoding axis with any pattern (extra calibration lines, partial Fourier, random lines). Each
   column of x is one dense system, inverted exactly. Because sensitivities are smooth it is done for some columns;
   between them the ratio to a variance known everywhere is interpolated: that of the regular pattern underneath
   (alias sets), or of a fully sampled scan where there is none.
3. *Pseudo-replicas* (Robson 2008, doi 10.1002/mrm.21728): two undersampled axes or an incomplete readout. Noise goes
   through the same linear map a few times; the variance over replicas is averaged over neighbouring pixels. Seeded:
   same input, same bytes.

The maps are taken as known, and the bias of the Tikhonov term is no noise: neither is in the deviation. Where the
centre of k-space is undersampled (separate calibration), maps drawn anew with the calibration's noise made the
empirical deviation 7 % larger on average (8 coils, R = 2 to 4) and up to 4 times in single pixels; with maps held fixed
it agreed within 1 % (R = 2).

Only Cholesky factorisations are used: torch 2.13's batched LU on the CPU fails with more than one thread (measured).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Complex64, Float32
from torch import Tensor
from torch.nn.functional import avg_pool3d

from pipelines.operators.encoding import ColumnNormal, encoding
from pipelines.operators.fourier import to_image, to_kspace, uncentred
from pipelines.operators.sampling import sampling_weights
from pipelines.preprocess.partial_fourier import NoiseResponse
from pipelines.recon.magnitude import magnitude_deviation
from pipelines.solvers.cg import conjugate_gradients

LONGEST_PERIOD = 6
"""Alias sets up to this size are inverted pixel by pixel; beyond it dense columns are cheaper."""
COLUMN_WORK = 2.5e8
"""Rows cubed, summed over the columns inverted in a partition: about 25 ms on one core. Objects of up to 120 x 120
pixels are done whole; of one of 220 rows 23 columns are inverted."""
FEWEST_COLUMNS = 16
REPLICAS = 12
REPLICA_WINDOW = 5
"""Pixels along y and x over which the variance over replicas is averaged."""
REPLICAS_VOLUME = 5
REPLICA_WINDOW_VOLUME = 3
"""In volumes partitions are averaged too, so that fewer replicas give as many samples."""
SMALLEST_WEIGHT = 1e-4
"""Relative to the largest count: keeps systems without regularisation invertible in single precision."""


def sense_deviation(
    maps: Complex64[Tensor, "coils z y x"],
    counts: Float32[Tensor, "frames z y"],
    noise_std: float,
    weight: float,
    image: Complex64[Tensor, "frames z y x"],
    readout_sampled: Bool[Tensor, "x"],
    responses: Sequence[NoiseResponse] = (),
    penalty: Float32[Tensor, "frames z y x"] | None = None,
) -> Float32[Tensor, "frames z y x"]:
    """Standard deviation of `|image|` from measurement noise.

    Args:
        maps: coil sensitivities used by the solve; where all are zero the image is zero by construction and so is its
            deviation.
        counts: readouts averaged into each line.
        noise_std: root of `E|n|^2` of one readout sample and coil; coils uncorrelated.
        weight: absolute Tikhonov weight w of the solve.
        image: the reconstruction; tells where it is so close to the noise that its magnitude varies less than the
            noise does.
        readout_sampled: which columns of k-space were measured.
        responses: what partial Fourier did to the noise of each frame, the same for frames of the same counts; nothing
            by default.
        penalty: of the solve, absolute, on the image's own k-space (`ColumnNormal`); the same for frames of the same
            counts.
    """
    patterns, which = torch.unique(counts, dim=0, return_inverse=True)
    deviation = torch.empty(image.shape, device=image.device)
    for number, pattern in enumerate(patterns):
        frames = torch.nonzero(which == number)[:, 0]
        response = responses[int(frames[0])] if responses else NoiseResponse(torch.ones((1, 1, 1)), 1.0)
        filters = response.weights.to(maps.device)
        beyond = None if penalty is None else penalty[frames[:1]]
        variance = _pattern_variance(maps, pattern, weight, readout_sampled, filters, beyond) * noise_std**2
        magnitude = image[frames].abs()
        deviation[frames] = magnitude_deviation(magnitude, variance.expand(magnitude.shape), response.channels)
    return deviation


def _pattern_variance(
    maps: Tensor, counts: Tensor, weight: float, readout_sampled: Tensor, filters: Tensor, penalty: Tensor | None
) -> Tensor:
    """Variance of the complex image for unit noise and one sampling pattern, `(z, y, x)`.

    Args:
        maps: coil sensitivities.
        counts: of this pattern.
        weight: Tikhonov weight.
        readout_sampled: which columns of k-space were measured.
        filters: weights of the image's k-space; of size 1 along axes on which they do not vary.
        penalty: on the image's k-space, `(1, z, y, x)`, varies along the same axes; or None.
    """
    intensity = maps.abs().square().sum(0)
    weight = max(weight, SMALLEST_WEIGHT * float(counts.max()))
    along_y, along_z = counts[:1], counts[:, :1]
    if bool(readout_sampled.all()) and filters.shape[::2] == (1, 1) and bool((counts == along_y).all()):
        along = None if penalty is None else penalty[0, 0, :, 0]
        variance = _axis_variance(maps, along_y[0], weight, filters.flatten(), along)
    elif bool(readout_sampled.all()) and filters.shape[1:] == (1, 1) and bool((counts == along_z).all()):
        along = None if penalty is None else penalty[0, :, 0, 0]
        swapped = maps.transpose(1, 2)
        variance = _axis_variance(swapped, along_z[:, 0], weight, filters.flatten(), along).transpose(0, 1)
    else:
        variance = _replica_variance(maps, counts, weight, readout_sampled, filters, penalty)
    return torch.where(intensity > 0, variance.clamp(min=0), 0.0)


def _axis_variance(
    maps: Tensor, counts: Tensor, weight: float, filters: Tensor, penalty: Tensor | None = None
) -> Tensor:
    """Variance when sampling varies along the middle axis only; maps `(coils, z, y, x)`, all others `(y,)`."""
    period = _period(counts)
    is_filtered, is_penalised = len(filters) > 1, penalty is not None and bool(penalty.any())
    if period <= LONGEST_PERIOD and not (is_filtered or is_penalised):
        return _alias_set_variance(maps, counts, weight, period)
    intensity = maps.abs().square().sum(0)
    baseline = 1 / intensity.clamp(min=torch.finfo(torch.float32).tiny)
    lattice = _lattice(counts)
    if lattice is not None:
        # Smooth maps mix neighbouring lines only: dense lines add the noise of full sampling, others the lattice's.
        gaps = torch.nonzero(counts > 0)[:, 0].diff()
        dense, sparse = gaps[gaps == 1].sum() / gaps.sum(), gaps[gaps > 1].sum() / gaps.sum()
        baseline = dense * baseline + sparse * _alias_set_variance(maps, lattice, weight, _period(lattice))
    work = COLUMN_WORK if lattice is not None else 2 * COLUMN_WORK
    spread = _point_spread(filters) if is_filtered else None
    beyond = _point_spread(penalty) if penalty is not None and is_penalised else None
    return torch.stack(
        [
            _column_variance(maps[:, z], intensity[z] > 0, baseline[z], counts, weight, work, spread, beyond)
            for z in range(maps.shape[1])
        ]
    )


def _lattice(counts: Tensor) -> Tensor | None:
    """The regular pattern under extra or missing lines: every q-th line, q the widest gap; None if q is no divisor."""
    n = counts.shape[0]
    lines = torch.nonzero(counts > 0)[:, 0]
    if len(lines) < 2:
        return None
    gaps = lines.diff()
    period = int(gaps.max())
    if period > LONGEST_PERIOD or n % period:
        return None
    lattice = torch.zeros_like(counts)
    lattice[int(lines[gaps.argmax()]) % period :: period] = 1
    return lattice


def _period(counts: Tensor) -> int:
    """The smallest divisor of the number of lines after which the pattern repeats."""
    n = counts.shape[0]
    return next(q for q in range(1, n + 1) if n % q == 0 and bool((counts.roll(q) == counts).all()))


def _point_spread(counts: Tensor) -> Tensor:
    """`F^H diag(counts) F` as a circulant: entry d couples pixels that are d apart."""
    spread: Tensor = torch.fft.ifft(uncentred(counts, (0,)))
    return spread


def _alias_set_variance(maps: Tensor, counts: Tensor, weight: float, period: int) -> Tensor:
    """Exact variance when every pixel aliases with `period - 1` others, a multiple of n / period away.

    In double precision: coils that cannot tell aliases apart make B about 1/w, and `B - w B^2` cancels.
    """
    coils, z, n, x = maps.shape
    spread = _point_spread(counts.double())[:: n // period]
    sets = maps.to(torch.complex128).reshape(coils, z, period, n // period, x)
    system = [
        [
            (sets[:, :, a].conj() * sets[:, :, b]).sum(0) * spread[(a - b) % period] + (weight if a == b else 0.0)
            for b in range(period)
        ]
        for a in range(period)
    ]
    inverse = _invert_in_place(system)
    rows = [inverse[a][a].real - weight * torch.stack(inverse[a]).abs().square().sum(0) for a in range(period)]
    return torch.stack(rows, 1).reshape(z, n, x).float()


def _invert_in_place(matrix: list[list[Tensor]]) -> list[list[Tensor]]:
    """Inverse of Hermitian positive definite matrices with tensors as entries: Gauss-Jordan, no pivots needed."""
    n = len(matrix)
    for k in range(n):
        pivot = matrix[k][k].reciprocal()
        matrix[k] = [pivot if j == k else matrix[k][j] * pivot for j in range(n)]
        for i in (i for i in range(n) if i != k):
            factor = matrix[i][k]
            matrix[i] = [-factor * pivot if j == k else matrix[i][j] - factor * matrix[k][j] for j in range(n)]
    return matrix


def _column_variance(
    maps: Tensor,
    inside: Tensor,
    baseline: Tensor,
    counts: Tensor,
    weight: float,
    work: float,
    filter_spread: Tensor | None,
    penalty_spread: Tensor | None = None,
) -> Tensor:
    """Variance of one partition, `(y, x)`, from dense systems of some columns; maps `(coils, y, x)`.

    As many columns as the work allows; between them the ratio to the baseline is interpolated. With a filter (its point
    spread) the image is filtered along y afterwards, which takes three times the work. With a penalty P (its point
    spread) the covariance is `B - B (w + P) B`.
    """
    n, width = inside.shape
    offset = torch.arange(n, device=maps.device)
    coupling = _point_spread(counts)[(offset[:, None] - offset) % n]
    inhabited = torch.nonzero(inside.any(0))[:, 0]
    if len(inhabited) == 0:
        return torch.zeros_like(baseline)
    first, last = int(inhabited[0]), int(inhabited[-1])
    most = max(FEWEST_COLUMNS, int(work / float(inside.sum(0).max()) ** 3))
    chosen = torch.linspace(first, last, min(most, last - first + 1), device=maps.device).round().long()
    ratio = torch.zeros((n, len(chosen)), device=maps.device)
    known = torch.zeros_like(ratio)
    for index, x in enumerate(chosen.tolist()):
        rows = torch.nonzero(inside[:, x])[:, 0]
        if len(rows) == 0:
            continue
        column = maps[:, rows, x]
        system = coupling[rows][:, rows] * (column.mH @ column)
        system.diagonal().add_(weight)
        distance = (rows[:, None] - rows) % n
        if penalty_spread is not None:
            system += penalty_spread[distance]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
        if filter_spread is None:
            filtered, variance = inverse, inverse.diagonal().real
        else:
            # T (B - B (w + P) B) T^H; B is Hermitian
            filtered = filter_spread[distance] @ inverse
            variance = (filtered * filter_spread[distance].conj()).sum(1).real
        variance = variance - weight * filtered.abs().square().sum(1)
        if penalty_spread is not None:
            variance = variance - ((filtered @ penalty_spread[distance]) * filtered.conj()).sum(1).real
        ratio[rows, index] = variance / baseline[rows, x].clamp(min=torch.finfo(torch.float32).tiny)
        known[rows, index] = 1
    return torch.where(inside, _interpolate(ratio, known, chosen, width) * baseline, 0.0)


def _interpolate(ratio: Tensor, known: Tensor, chosen: Tensor, width: int) -> Tensor:
    """Values of some columns spread over all `width` columns: linear between, neighbours where not known."""
    rows = torch.arange(ratio.shape[0], device=ratio.device, dtype=torch.float32)
    near_y = torch.exp(-((rows[:, None] - rows) / 4).square()) + 1e-6
    columns = torch.arange(len(chosen), device=ratio.device, dtype=torch.float32)
    near_x = torch.exp(-(columns[:, None] - columns).square()) + 1e-6
    filled = torch.where(known > 0, ratio, (near_y @ ratio @ near_x) / (near_y @ known @ near_x))
    if len(chosen) == 1:
        return filled.expand(-1, width)
    position = torch.arange(width, device=ratio.device)
    right = torch.searchsorted(chosen, position).clamp(1, len(chosen) - 1)
    left = right - 1
    part = ((position - chosen[left]) / (chosen[right] - chosen[left])).clamp(0, 1)
    return filled[:, left] * (1 - part) + filled[:, right] * part


def _replica_variance(
    maps: Tensor, counts: Tensor, weight: float, readout_sampled: Tensor, filters: Tensor, penalty: Tensor | None
) -> Tensor:
    """Variance over reconstructions of pure noise, averaged over neighbouring pixels."""
    weights = sampling_weights(counts[None], readout_sampled)
    forward = encoding(maps, weights)
    replicas = REPLICAS if 1 in _window(maps.shape[1:]) else REPLICAS_VOLUME
    beyond = None if penalty is None else penalty.expand(replicas, -1, -1, -1)
    normal = ColumnNormal(maps, weights.expand(replicas, -1, -1, -1), beyond)
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (maps.shape[0], *weights.shape[1:])
    right_side = torch.cat(
        [
            forward.adjoint(torch.randn((1, *shape), generator=generator, dtype=torch.complex64).to(maps.device))
            for _ in range(replicas)
        ]
    )
    solved = conjugate_gradients(
        lambda columns: normal(columns) + weight * columns, normal.to_columns(right_side), iterations=30, tolerance=1e-3
    )
    intensity = maps.abs().square().sum(0)
    image = normal.to_image(solved.solution)
    axes = tuple(axis - 3 for axis in range(3) if filters.shape[axis] > 1)
    if axes:
        image = to_image(to_kspace(image, axes) * filters, axes)
    power = image.abs().square().mean(0) * intensity
    inside = (intensity > 0).float()
    mean = _window_mean(power) / _window_mean(inside).clamp(min=1e-3)  # at least the pixel itself, where it counts
    return mean / intensity.clamp(min=torch.finfo(torch.float32).tiny)


def _window_mean(values: Float32[Tensor, "z y x"]) -> Float32[Tensor, "z y x"]:
    """Mean over a box, of which only the part inside the image counts."""
    sizes = _window(values.shape)
    return avg_pool3d(values[None], sizes, 1, [size // 2 for size in sizes], count_include_pad=False)[0]


def _window(shape: Sequence[int]) -> tuple[int, int, int]:
    """The box along z, y, x; 1 along an axis shorter than it, as z is in single slices."""
    z, y, x = (
        size if n >= size else 1
        for size, n in zip((REPLICA_WINDOW_VOLUME, REPLICA_WINDOW, REPLICA_WINDOW), shape, strict=True)
    )
    return z, y, x
