"""Factor that makes deviation maps cover the truth, with a guarantee for scans that were not seen. Numpy only.

The intervals |x_hat| +- z (q s + q0 b) grow with q: s is the deviation, b the bright intensity of the image, z the
quantile of the normal for the level, and the floor q0 is chosen beforehand (a floor fitted to the same scans would void
the guarantees). The risk R_i(q) of scan i is the part of its foreground outside of the intervals; alpha = 1 - level.
The scans are exchangeable, their pixels are not. Three guarantees, from strong to weak needs for scans:

1. *bound* (risk-controlling prediction sets): the smallest q with an upper confidence bound of the mean risk below
   alpha, so that with probability 1 - delta over the calibration scans E R(q) <= alpha. The bound is Hoeffding-Bentkus.
   For level and 1 - delta of 0.9 it exists from 22 scans on, and is nearly tight with some hundreds.
2. *scans* (split conformal over scans): q_i is the smallest factor that covers `level` of scan i; q is the
   ceil((n + 1)(1 - delta))-th smallest, so that a new scan has `level` of its foreground covered with probability
   1 - delta. With fewer than 1 / delta - 1 scans it is the largest q_i, and delta becomes 1 / (n + 1).
3. *expected* (conformal risk control): the smallest q with (sum R_i(q) + B) / (n + 1) <= alpha, so that on average over
   the calibration scans and a new one E R <= alpha. B is the largest risk a scan can have, 1; or less, where a scan of
   which more is outside shall count as B. Exists from B / alpha - 1 scans on. With twelve scans and level 0.9 it makes
   intervals that cover 97.5 % of these scans for B = 1, and 92.5 % for B = 0.4.

References: Bates 2021, doi 10.1145/3478535, and Angelopoulos 2022, arXiv 2202.05265 (1); Angelopoulos 2021, arXiv
2110.01052 (Hoeffding-Bentkus); Vovk 2005, doi 10.1007/b106715 (2); Angelopoulos 2022, arXiv 2208.02814 (3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, comb, exp, log
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.training.compared import ComparedScan

TIGHT_ENOUGH: Final = 0.5
"""Part of alpha that the bound must admit as mean risk for `choose` to take it; else 90 % intervals cover over 95 %."""


class Guarantee(StrEnum):
    """What is promised of new scans; see the rules above."""

    BOUND = "bound"
    SCANS = "scans"
    EXPECTED = "expected"


@dataclass(frozen=True, slots=True)
class Scaling:
    """How to scale deviations, and what that promises.

    Attributes:
        factor: q.
        floor: q0, in bright intensities of the image.
        level: part of the foreground that intervals of this normal level are to cover.
        guarantee: which kind of promise.
        delta: probability with which the promise may fail; 0 for `expected`, whose promise is an average.
        n_scans: that calibrated.
        most_risk: B; counts for `expected` alone.
    """

    factor: float
    floor: float
    level: float
    guarantee: Guarantee
    delta: float
    n_scans: int
    most_risk: float = 1.0

    def apply(self, scans: Sequence[ComparedScan]) -> list[ComparedScan]:
        """The scans with scaled deviations."""
        return [scan.scaled(self.factor, self.floor) for scan in scans]

    @property
    def statement(self) -> str:
        """The promise in a sentence, for cards and tables."""
        share, sure, n = f"{100 * self.level:g} %", f"{100 * (1 - self.delta):.3g} %", self.n_scans
        match self.guarantee:
            case Guarantee.BOUND:
                return (
                    f"with {sure} confidence in the choice of {n} calibration scans, {share} of the foreground of new "
                    "scans is covered on average (risk-controlling prediction sets, Hoeffding-Bentkus)"
                )
            case Guarantee.SCANS:
                return (
                    f"a new scan has {share} of its foreground covered with probability {sure} (split conformal over "
                    f"{n} calibration scans)"
                )
            case Guarantee.EXPECTED:
                capped = (
                    "" if self.most_risk == 1 else f"; of a scan at most {100 * self.most_risk:g} % count as missed"
                )
                return (
                    f"{share} of the foreground of a new scan is covered on average over {n} calibration scans and new "
                    f"scans (conformal risk control{capped})"
                )


def choose(n_scans: int, level: float = 0.9, delta: float = 0.1) -> Guarantee:
    """The bound where enough scans make it tight, else the quantile over scans."""
    alpha = 1 - level
    admissible = admissible_risk(n_scans, alpha, delta)
    return Guarantee.BOUND if admissible is not None and admissible >= TIGHT_ENOUGH * alpha else Guarantee.SCANS


def fit_scaling(
    scans: Sequence[ComparedScan],
    guarantee: Guarantee,
    *,
    level: float = 0.9,
    floor: float = 0.0,
    delta: float = 0.1,
    most_risk: float = 1.0,
) -> Scaling:
    """Fit the factor to calibration scans.

    Args:
        scans: at least one, none of which is tested on.
        guarantee: kind of promise.
        level: 1 - alpha.
        floor: q0 in bright intensities, chosen without looking at these scans.
        delta: probability with which the promise may fail.
        most_risk: B, from alpha to 1.

    Raises:
        ValueError: too few scans for the guarantee; level, delta or B not where they may be; no factor suffices since
            the deviation is zero where the error is not.
    """
    if not (0 < level < 1 and 0 < delta < 1 and floor >= 0):
        raise ValueError(f"level {level} and delta {delta} must lie between 0 and 1, the floor {floor} not below 0")
    n, alpha = len(scans), 1 - level
    if not alpha <= most_risk <= 1:
        raise ValueError(f"the largest risk of a scan must be from {alpha:g} to 1, not {most_risk:g}")
    if n == 0:
        raise ValueError("no calibration scans")
    needed = [needed_factors(scan, level, floor) for scan in scans]
    match guarantee:
        case Guarantee.BOUND:
            admissible = admissible_risk(n, alpha, delta)
            if admissible is None:
                raise ValueError(
                    f"{n} scans are too few for a bound at level {level:g} and delta {delta:g}: at least "
                    f"{fewest_scans(alpha, delta)} are needed"
                )
            factor = smallest_factor(needed, admissible)
        case Guarantee.EXPECTED:
            admissible = ((n + 1) * alpha - most_risk) / n
            if admissible < -1e-12:
                fewest = fewest_expected(alpha, most_risk)
                raise ValueError(f"{n} scans are too few for an expected risk of {alpha:g}: {fewest} are needed")
            delta, factor = 0.0, smallest_factor_capped(needed, max(admissible, 0.0), most_risk)
        case Guarantee.SCANS:
            delta = max(delta, 1 / (n + 1))
            # Rounded up but for the error of floating point: (n + 1)(1 - 1 / (n + 1)) is n.
            rank = ceil((n + 1) * (1 - delta) - 1e-9)
            factor = sorted(smallest_factor([each], alpha) for each in needed)[rank - 1]
    if not np.isfinite(factor):
        raise ValueError("no factor suffices: the deviation is zero in pixels with an error; give a floor above 0")
    return Scaling(factor, floor, level, guarantee, delta, n, most_risk)


def needed_factors(scan: ComparedScan, level: float, floor: float) -> NDArray[np.float64]:
    """Smallest factor that covers each foreground pixel; infinite where the deviation is zero and the floor too low."""
    missing = np.maximum(scan.errors / quantile_of(level) - floor, 0)
    deviations = scan.deviations
    needed = np.where(missing > 0, np.inf, 0.0)
    np.divide(missing, deviations, out=needed, where=deviations > 0)
    return needed


def smallest_factor(needed: Sequence[NDArray[np.float64]], admissible: float) -> float:
    """Smallest q with a mean risk over scans of at most `admissible`, exactly: a weighted quantile.

    Args:
        needed: `needed_factors` of each scan.
        admissible: mean risk.
    """
    values = np.concatenate(needed)
    # Each scan weighs the same, however many pixels it has. Scans of as many pixels as each other are counted in whole
    # numbers, without rounding.
    sizes = [len(each) for each in needed]
    if len(set(sizes)) == 1:
        allowed = int(np.floor(admissible * len(values) + 1e-9))
        return float(np.partition(values, len(values) - 1 - allowed)[len(values) - 1 - allowed])
    weights = np.concatenate([np.full(size, 1 / (size * len(needed))) for size in sizes])
    order = np.argsort(values, kind="stable")[::-1]
    outside = np.cumsum(weights[order])  # risk when q is just below each value, largest first
    return float(values[order[np.searchsorted(outside, admissible + 1e-12, side="right")]])


def smallest_factor_capped(needed: Sequence[NDArray[np.float64]], admissible: float, most_risk: float) -> float:
    """Smallest q with a mean risk of at most `admissible` when a scan's risk counts as at most `most_risk`."""
    if most_risk >= 1:
        return smallest_factor(needed, admissible)
    ordered = [np.sort(each) for each in needed]
    candidates = np.unique(np.concatenate([np.zeros(1), *ordered]))
    low, high = 0, len(candidates) - 1  # at the largest one, nothing is outside
    while low < high:
        middle = (low + high) // 2
        risks = [1 - np.searchsorted(each, candidates[middle], side="right") / len(each) for each in ordered]
        enough = np.minimum(risks, most_risk).mean() <= admissible + 1e-12
        low, high = (low, middle) if enough else (middle + 1, high)
    return float(candidates[low])


def admissible_risk(n_scans: int, alpha: float, delta: float) -> float | None:
    """Largest mean risk of n scans whose p-value for `E R > alpha` is at most delta; None where there is none."""
    if hoeffding_bentkus(0.0, n_scans, alpha) > delta:
        return None
    low, high = 0.0, alpha
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if hoeffding_bentkus(middle, n_scans, alpha) <= delta else (low, middle)
    return low


def fewest_scans(alpha: float, delta: float) -> int:
    """From how many scans on the bound exists: (1 - alpha)^n <= delta."""
    return ceil(log(delta) / log(1 - alpha))


def fewest_expected(alpha: float, most_risk: float = 1.0) -> int:
    """From how many scans on an expected risk can be promised: `(n + 1) alpha >= B`."""
    return max(1, ceil(round(most_risk / alpha, 9) - 1))


def hoeffding_bentkus(mean_risk: float, n: int, alpha: float) -> float:
    """p-value of the hypothesis that risks between 0 and 1 have an expectation above alpha, given the mean of n.

    The smaller one of Hoeffding's exp(-n KL(min(r, alpha) | alpha)) and Bentkus' e P(Bin(n, alpha) <= ceil(n r)).
    """
    r = min(mean_risk, alpha)
    divergence = (r * log(r / alpha) if r > 0 else 0.0) + (1 - r) * log((1 - r) / (1 - alpha))
    # ceil of what is a whole number but for rounding must not be the next one.
    most = min(ceil(n * mean_risk - 1e-9), n)
    below = sum(comb(n, k) * alpha**k * (1 - alpha) ** (n - k) for k in range(most + 1))
    return min(exp(-n * divergence), exp(1) * below, 1.0)


def quantile_of(level: float) -> float:
    """Half width, in deviations, of the central interval of the normal that holds `level`."""
    return NormalDist().inv_cdf((1 + level) / 2)
