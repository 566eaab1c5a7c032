"""Values of seeds against a published mean and against each other: tests, intervals, and what is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from continual.results.comparison import Published, compare, difference, holm, sides

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


@pytest.mark.parametrize("digit", [0.1, 1.0])
def test_the_variance_of_rounding_is_that_of_a_uniform_number(digit: float) -> None:
    got = compare(OURS, Published(97.0, 0.81, 10, digit))
    own, theirs = OURS.var(ddof=1) / 5, 0.81**2 / 10
    df = (own + theirs) ** 2 / (own**2 / 4 + theirs**2 / 9)
    reach = stats.t.ppf(0.975, df) * math.sqrt(own + theirs + digit**2 / 12)
    assert (got.low, got.high) == pytest.approx((OURS.mean() - 97 - reach, OURS.mean() - 97 + reach))


def test_the_same_number_throughout_is_reproduced() -> None:
    assert compare([97.0, 97.0], exact(97.0, 0.0, 10)).verdict == "reproduced"
    assert compare([97.0, 97.0], exact(97.1, 0.0, 10)).verdict == "differs"


def test_a_single_run_borrows_the_published_deviation() -> None:
    theirs = exact(97.0, 0.5, 10)
    got = compare([97.9], theirs)
    reach = (
        stats.t.ppf(0.975, 9) * 0.5 * math.sqrt(1 + 1 / 10)
    )  # of a prediction: there is one estimate of the deviation
    assert (got.low, got.high) == pytest.approx((0.9 - reach, 0.9 + reach))
    assert math.isnan(got.sd) and got.n == 1


@pytest.mark.parametrize("n", [2, 3, 10])
def test_of_a_single_run_it_is_wrong_about_one_time_in_twenty_too(n: int) -> None:
    rng = np.random.default_rng(2)
    draws = rng.normal(50, 1, (4000, n + 1))
    wrong = [compare(own[:1], _published(own[1:])).verdict for own in draws].count("differs") / len(draws)
    assert 0.04 < wrong < 0.06


def test_where_a_seed_was_stopped_nothing_is_reproduced() -> None:
    assert compare([97.0, math.nan, 97.1], exact(97, 1, 10), 1).verdict == "stopped"
    assert compare([math.nan], exact(97, 1, 10), 1).verdict == "stopped"


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


# ---- two runs


def test_pairs_are_students_test_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 10, 6)  # what a seed does to both, which pairing takes out
    ours, theirs = common + rng.normal(1, 0.5, 6), common + rng.normal(0, 0.5, 6)
    found = difference(ours, theirs, range(6), range(6))
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval()
    assert found.paired and found.n == 6
    assert [found.p, found.low, found.high] == pytest.approx([expected.pvalue, interval.low, interval.high])
    assert not found.tied and difference(ours, theirs, range(6), range(6), pairs=False).tied


def test_only_shared_seeds_are_paired_in_whatever_order_and_stopped_ones_are_left_out() -> None:
    found = difference([1, 2, 3, np.nan], [9, 1, 0, 0.5], [1, 2, 3, 4], [7, 3, 4, 1])
    expected = stats.ttest_rel([1, 3], [0.5, 1])
    assert (found.n, found.difference, found.p) == (2, 1.25, pytest.approx(expected.pvalue))


def test_without_two_shared_seeds_it_is_welchs_test() -> None:
    ours, theirs = [1.0, 2, 3, 5], [2.0, 9, 4]
    found = difference(ours, theirs, [0, 1, 2, 3], [3, 4, 5])
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = expected.confidence_interval()
    assert not found.paired and found.n == 7
    assert [found.p, found.low, found.high] == pytest.approx([expected.pvalue, interval.low, interval.high])


def test_too_few_seeds_have_a_difference_but_no_interval() -> None:
    one = difference([1.0], [3.0], [0], [0])
    assert one.difference == -2 and math.isnan(one.p) and math.isnan(one.low) and one.tied
    assert math.isnan(difference([np.nan], [3.0], [0], [0]).difference)


def test_what_does_not_vary_is_the_same_or_not() -> None:
    same, other = (difference([1.0, 2, 3], [1 + by, 2 + by, 3 + by], range(3), range(3)) for by in (0, 1))
    assert same.p == 1 and same.tied and not other.tied and other.low == other.high == -1
    assert math.isnan(other.p)  # of a difference that does not vary there is no t
    for ours, theirs in (([0.3, 0.3], [0.1 + 0.2, 0.1 + 0.2]), ([0.3, 0.7], [0.1 + 0.2, 0.7])):  # which rounding made
        rounded = difference(ours, theirs, [0, 1], [0, 1])
        assert (rounded.low, rounded.high, rounded.p) == (0, 0, 1) and rounded.tied


def test_the_sides_are_the_values_that_are_held_against_each_other() -> None:
    ours, theirs, paired = sides([1, 2, 3, np.nan], [9, 1, 0, 0.5], [1, 2, 3, 4], [7, 3, 4, 1])
    assert (ours.tolist(), theirs.tolist(), paired) == ([1, 3], [0.5, 1], True)
    ours, theirs, paired = sides([1, np.nan], [9, 1], [1, 2], [1, 2])
    assert (ours.tolist(), theirs.tolist(), paired) == ([1], [9, 1], False)


def test_holms_correction() -> None:
    # by hand: 0.005·4, then 0.01·3, then 0.03·2, and 0.04·1 is below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []
    corrected = holm([math.nan, 0.02, 0.03])
    assert math.isnan(corrected[0]) and corrected[1:] == pytest.approx([0.04, 0.04])  # no test is none that counts
