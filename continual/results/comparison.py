"""Our values of one number over seeds, held against a published mean and spread."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Verdict = Literal["reproduced", "differs", "not run"]
LEVEL = 0.95


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
        return cls(float(found[1]), sd, n, 10.0 ** -len(found[2] or ""))


@dataclass(frozen=True)
class Comparison:
    """Ours (``mean``, ``sd`` with n-1, ``n``) minus a published mean, with the 95 % interval of that difference.

    All NaN where there is nothing of ours.
    """

    mean: float
    sd: float
    n: int
    difference: float
    low: float
    high: float
    p: float

    @property
    def verdict(self) -> Verdict:
        """``reproduced`` where the interval has zero in it, which is where p is at least 0.05."""
        if not self.n:
            return "not run"
        return "reproduced" if self.low <= 0 <= self.high else "differs"


def compare(ours: ArrayLike, published: Published) -> Comparison:
    """Welch's two-sided t-test of equal means (Welch 1947) between values (R,) and a published mean.

    The two variances may differ. The published mean was rounded: the variance of that rounding, digit²/12, is added to
    the variance of the difference. A single value of ours has no variance of its own, so the published one stands for
    it. Values that are not finite are left out.
    """
    from scipy import stats

    values = np.asarray(ours, np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if not n:
        return Comparison(math.nan, math.nan, 0, *[math.nan] * 4)
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if n > 1 else math.nan
    theirs = published.sd**2 / published.n
    own = sd**2 / n if n > 1 else published.sd**2
    freedom = [n - 1 if n > 1 else published.n - 1, published.n - 1]
    # Satterthwaite's degrees of freedom; where neither varies only the rounding is left, which has no freedom to lose
    shares = [v**2 / f for v, f in zip((own, theirs), freedom, strict=True) if f]
    df = (own + theirs) ** 2 / sum(shares) if sum(shares) else math.inf
    error = math.sqrt(own + theirs + published.digit**2 / 12)
    difference = mean - published.mean
    reach = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, df))
    return Comparison(mean, sd, n, difference, difference - reach, difference + reach, p)
