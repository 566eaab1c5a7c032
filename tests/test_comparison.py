"""Our values against a published mean: Welch's test, its interval, and what stands in for what is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from continual.results.comparison import Published, compare

OURS = np.array([97.1, 98.4, 96.2, 97.7, 98.0])


def exact(mean: float, sd: float, n: int) -> Published:
    """A published mean that was not rounded."""
    return Published(mean, sd, n, 0.0)


@pytest.mark.parametrize("theirs", [exact(97.0, 0.81, 10), exact(99.0, 0.2, 3), exact(97.4, 3.0, 30)])
def test_it_is_welchs_test(theirs: Published) -> None:
    got = compare(OURS, theirs)
    wanted = stats.ttest_ind_from_stats(
        OURS.mean(), OURS.std(ddof=1), len(OURS), theirs.mean, theirs.sd, theirs.n, equal_var=False
    )
    assert got.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert got.verdict == ("reproduced" if wanted.pvalue >= 0.05 else "differs")


def test_the_interval_is_scipys() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.normal(97, 2, 12)
    got = compare(OURS, exact(theirs.mean(), theirs.std(ddof=1), len(theirs)))
    wanted = stats.ttest_ind(OURS, theirs, equal_var=False).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)


def test_it_is_wrong_about_one_time_in_twenty_and_finds_what_differs() -> None:
    rng = np.random.default_rng(1)
    same = [compare(rng.normal(50, 1, 10), _published(rng.normal(50, 2, 10))).verdict for _ in range(1000)]
    assert 0.03 < same.count("differs") / 1000 < 0.07
    far = [compare(rng.normal(50, 1, 10), _published(rng.normal(53, 1, 10))).verdict for _ in range(200)]
    assert far.count("differs") > 195


def _published(values: np.ndarray) -> Published:
    return exact(values.mean(), values.std(ddof=1), len(values))


def test_the_rounding_of_the_published_mean_counts() -> None:
    same = np.full(10, 19.704)
    assert compare(same, Published(19.7, 0.0, 10, 0.1)).verdict == "reproduced"
    assert compare(same, Published(19.7, 0.0, 10, 0.001)).verdict == "differs"


def test_a_single_run_borrows_the_published_deviation() -> None:
    theirs = exact(97.0, 0.5, 10)
    got = compare([97.9], theirs)
    reach = stats.t.ppf(0.975, (0.25 + 0.025) ** 2 / (0.25**2 / 9 + 0.025**2 / 9)) * math.sqrt(0.25 + 0.025)
    assert (got.low, got.high) == pytest.approx((0.9 - reach, 0.9 + reach))
    assert math.isnan(got.sd) and got.n == 1


def test_lost_seeds_are_left_out_and_nothing_is_not_run() -> None:
    assert compare([97.0, math.nan, 98.0], exact(97, 1, 10)).n == 2
    none = compare([math.nan], exact(97, 1, 10))
    assert none.verdict == "not run" and none.n == 0 and math.isnan(none.p)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("97.70 ± 0.81", Published(97.7, 0.81, 10, 0.01)),
        ("97 +- 1.5", Published(97.0, 1.5, 10, 1.0)),
        (" 0.9 ± 0 ", Published(0.9, 0.0, 10, 0.1)),
    ],
)
def test_a_published_number_is_read(text: str, wanted: Published) -> None:
    got = Published.read(text, 10)
    assert (got.mean, got.sd, got.n) == (wanted.mean, wanted.sd, wanted.n)
    assert got.digit == pytest.approx(wanted.digit)


def test_a_standard_error_becomes_a_deviation() -> None:
    assert Published.read("80.0 ± 0.5", 16, "se").sd == pytest.approx(2.0)


@pytest.mark.parametrize("text", ["", "97.7", "± 1", "97.7 ± x", "97.7 ± 1 ± 2", "None"])
def test_what_is_no_published_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form"):
        Published.read(text, 10)
