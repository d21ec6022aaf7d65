"""Statistics against what was published or worked out by hand."""

import pytest

from normdet.lab.compare.stats import estimate, holm, least_errors, paired, signed

# W. S. Gosset ("Student"), The Probable Error of a Mean (1908): additional hours of sleep of ten
# patients under two drugs.
ONE = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
TWO = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_students_own_example():
    """t = 4.0621 at 9 degrees, p = 0.002833, interval 0.7001 to 2.4599: as R's documentation."""
    found = paired(TWO, ONE)
    assert found.estimate.mean == pytest.approx(1.58)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.estimate.low == pytest.approx(0.7001142, abs=5e-8)
    assert found.estimate.high == pytest.approx(2.4598858, abs=5e-8)


@pytest.mark.parametrize(
    "n, quantile", [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (10, 2.262), (31, 2.042)]
)
def test_intervals_are_those_of_the_printed_table_of_t(n, quantile):
    values = [float(i) for i in range(n)]
    error = (n * (n + 1) / 12 / n) ** 0.5  # the variance of 0..n-1 is n(n+1)/12
    assert estimate(values).half / error == pytest.approx(quantile, abs=5e-4)


def test_one_seed_has_a_mean_and_nothing_else():
    found = estimate([3.0])
    assert (found.mean, found.n, found.half, found.low, found.high) == (3, 1, None, None, None)
    assert paired([3.0], [1.0]).p is None
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_the_interval_of_two_seeds_with_one_degree_of_freedom():
    """t of one degree is Cauchy: p = 1 - 2/pi atan(t), here at t = 2 / 1."""
    found = paired([3.0, 5.0], [2.0, 2.0])
    assert found.p == pytest.approx(0.2951672, abs=1e-7)
    assert found.estimate.half == pytest.approx(12.7062047, abs=1e-6)


def test_differences_without_spread_are_not_certain():
    assert paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).p == 1.0
    assert paired([1.1, 2.1, 3.1], [1.0, 2.0, 3.0]).p is None
    assert paired([1e9 + 1, 2e9 + 1], [1e9, 2e9]).p is None


@pytest.mark.parametrize(
    "p_values, adjusted",
    [
        # Smallest times 4, then 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 lifted to the one before it.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.04, 0.04], [0.08, 0.08]),
        ([0.9, 0.5, 0.4], [1.0, 1.0, 1.0]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)


def test_pairs_of_different_length_are_no_pairs():
    with pytest.raises(ValueError):
        paired([1.0, 2.0], [1.0])


def test_a_larger_family_asks_for_more():
    """Printed tables of t at 0.05/2 and at 0.05/10, that is 0.005 on either side for five rows."""
    assert least_errors(3, 1) == pytest.approx(4.303, abs=5e-4)
    assert least_errors(5, 5) == pytest.approx(4.604, abs=5e-4)


def test_holm_over_more_than_could_be_tested():
    assert holm([0.01, 0.02], 4) == pytest.approx([0.04, 0.06])


@pytest.mark.parametrize(
    "value, text", [(1.25, "+1.2"), (-0.04, "+0.0"), (0.0, "+0.0"), (-0.06, "-0.1")]
)
def test_nothing_has_no_minus(value, text):
    assert signed(value) == text
