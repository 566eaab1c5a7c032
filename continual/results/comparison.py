"""Values of one number over seeds, held against each other, or against a published mean and spread."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from continual.results.metrics import Array, summarise

Verdict = Literal["reproduced", "differs", "stopped", "not run"]
LEVEL = 0.95
TINY = 1e-12
"""Differences of fractions below this are rounding."""


@dataclass(frozen=True)
class Published:
    """A published mean over ``n`` runs with their standard deviation; ``digit`` is one of the mean's last digit."""

    mean: float
    sd: float
    n: int
    digit: float

    @classmethod
    def read(cls, text: str, n: int, spread: Literal["sd", "se"] = "sd") -> Published:
        """From ``97.70 ± 0.81`` (or ``+-``); ValueError where it is not of that form."""
        number = r"-?\d+(?:\.(\d+))?"
        found = re.fullmatch(rf"\s*({number})\s*(?:±|\+-)\s*({number})\s*", text)
        if not found:
            raise ValueError(f"'{text}' is not of the form '97.70 ± 0.81'")
        sd = float(found[3]) * (math.sqrt(n) if spread == "se" else 1.0)
        if sd < 0:
            raise ValueError(f"'{text}' has a spread below 0")
        return cls(float(found[1]), sd, n, 10.0 ** -len(found[2] or ""))


@dataclass(frozen=True)
class Comparison:
    """Ours (``mean``, ``sd`` with n-1, ``n``) minus a published mean, with the 95 % interval of that difference.

    All NaN where there is nothing of ours. So many seeds of ours were ``stopped``.
    """

    mean: float
    sd: float
    n: int
    difference: float
    low: float
    high: float
    p: float
    stopped: int = 0

    @property
    def verdict(self) -> Verdict:
        """``reproduced`` where the interval has zero in it, which is where p is at least 0.05, and no seed was stopped.

        A mean over the seeds that were lucky is not the published one.
        """
        if self.stopped:
            return "stopped"
        if not self.n:
            return "not run"
        return "reproduced" if self.low <= 0 <= self.high else "differs"


def compare(ours: ArrayLike, published: Published, stopped: int = 0) -> Comparison:
    """Welch's two-sided t-test of equal means (Welch 1947) between values (R,) and a published mean.

    The two variances may differ. The published mean was rounded: the variance of that rounding, digit²/12, is added to
    the variance of the difference. A single value of ours has no variance of its own, so the published one stands for
    it, and the interval is that of a prediction (Student's, with the published mean's degrees of freedom). Values that
    are not finite are left out; ``stopped`` of them were stopped.
    """
    found = summarise(ours)
    mean, sd, n = found.mean, found.sd, found.n
    if not n:
        return Comparison(math.nan, math.nan, 0, math.nan, math.nan, math.nan, math.nan, stopped)
    theirs = published.sd**2 / published.n
    own = sd**2 / n if n > 1 else published.sd**2
    # of one value both variances are one estimate
    each = [(own, n - 1), (theirs, published.n - 1)] if n > 1 else [(theirs, published.n - 1)]
    # Satterthwaite's degrees of freedom; where neither varies only the rounding is left, which has no freedom to lose
    df = _satterthwaite(*zip(*each, strict=True))
    error = math.sqrt(own + theirs + published.digit**2 / 12)
    difference = mean - published.mean
    return Comparison(mean, sd, n, difference, *_tested(difference, error, df), stopped)


# ---- two runs


@dataclass(frozen=True)
class Difference:
    """The mean difference of two runs with its 95 % interval; all NaN where there are too few seeds for a test.

    ``paired`` tells that it is the mean of the differences of ``n`` seeds that both have; else ``n`` counts the values
    of both sides.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int
    paired: bool

    @property
    def tied(self) -> bool:
        """Whether the interval has zero in it, so that the two cannot be told apart; NaN tells nothing apart."""
        return not (self.low > 0 or self.high < 0)


def difference(
    ours: ArrayLike, theirs: ArrayLike, seeds: Sequence[int], their_seeds: Sequence[int], pairs: bool = True
) -> Difference:
    """Ours minus theirs: Student's paired t-test over the seeds that both have, or Welch's test.

    Pairing takes out what a seed does to both (the order of classes, the initial weights). Where fewer than two seeds
    are shared, or without ``pairs``, it is Welch's test of equal means, whose variances may differ. Values that are not
    finite are left out.
    """
    one, other, paired = sides(ours, theirs, seeds, their_seeds, pairs)
    if not paired:
        return _welch(one, other)
    each, n = one - other, len(one)
    mean = float(each.mean())
    return Difference(mean, *_tested(mean, float(each.std(ddof=1)) / math.sqrt(n), n - 1), n, True)


def sides(
    ours: ArrayLike, theirs: ArrayLike, seeds: Sequence[int], their_seeds: Sequence[int], pairs: bool = True
) -> tuple[Array, Array, bool]:
    """The values that :func:`difference` holds against each other, and whether they are pairs, of the same seeds."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    shared = [seed for seed in seeds if seed in their_seeds] if pairs else []
    each = [(ours[seeds.index(seed)], theirs[their_seeds.index(seed)]) for seed in shared]
    both = np.asarray([pair for pair in each if np.isfinite(pair).all()]).reshape(-1, 2)
    if len(both) < 2:
        return ours[np.isfinite(ours)], theirs[np.isfinite(theirs)], False
    return both[:, 0], both[:, 1], True


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of several tests, corrected as Holm (1979) has it; NaN is no test and stays.

    The least is multiplied by the number of tests, the next by one less and so on; none is below the one before it.
    """
    order = sorted((i for i, p in enumerate(values) if math.isfinite(p)), key=lambda i: values[i])
    corrected, least = list(values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * values[i]))
        corrected[i] = least
    return corrected


def _welch(ours: Array, theirs: Array) -> Difference:
    """Welch's two-sided t-test of equal means (Welch 1947)."""
    n = len(ours) + len(theirs)
    if min(len(ours), len(theirs)) < 2:
        mean = float(ours.mean() - theirs.mean()) if len(ours) and len(theirs) else math.nan
        return Difference(mean, math.nan, math.nan, math.nan, n, False)
    variances = [float(side.var(ddof=1)) / len(side) for side in (ours, theirs)]
    df = _satterthwaite(variances, [len(ours) - 1, len(theirs) - 1])
    mean = float(ours.mean() - theirs.mean())
    return Difference(mean, *_tested(mean, math.sqrt(sum(variances)), df), n, False)


def _satterthwaite(variances: Sequence[float], freedom: Sequence[int]) -> float:
    """The degrees of freedom of a sum of variances; infinite where nothing varies."""
    shares = sum(v**2 / f for v, f in zip(variances, freedom, strict=True) if f)
    return sum(variances) ** 2 / shares if shares else math.inf


def _tested(difference: float, error: float, df: float) -> tuple[float, float, float]:
    """The interval of a difference with this standard error, and the p-value of Student's two-sided t-test.

    Where nothing varies there is no test: then p is 1 where there is no difference, and else NaN.
    """
    from scipy.special import ndtr, ndtri, stdtr, stdtrit  # takes half as long to import as scipy.stats

    finite = math.isfinite(df)
    if error < TINY:
        return (0.0, 0.0, 1.0) if abs(difference) < TINY else (difference, difference, math.nan)
    reach = float(stdtrit(df, (1 + LEVEL) / 2) if finite else ndtri((1 + LEVEL) / 2)) * error
    t = -abs(difference) / error
    p = 2 * float(stdtr(df, t) if finite else ndtr(t))
    return difference - reach, difference + reach, p
