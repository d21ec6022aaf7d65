"""The statistics of a few seeds: intervals, paired differences, and corrections for many.

A comparison can afford three to five seeds, and their small number decides the method. A sign-flip
permutation test of `n` pairs cannot give a p-value below `2 / 2^n`: 0.25 for three seeds, 0.0625
for five. So it could never find a difference. A bootstrap of three values covers far less than it
claims. Student's t is exact for normal values at any `n` from two on, but a few seeds cannot check
that values are normal. Few seeds make wide intervals: 12.7 standard errors to each side at `n` = 2,
4.3 at 3, 2.8 at 5.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from normdet.errors import NormdetError

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its 95% interval, which a single seed does not have."""

    mean: float
    n: int
    half: float | None = None

    @property
    def low(self) -> float | None:
        """The interval's lower end."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """The interval's upper end."""
        return None if self.half is None else self.mean + self.half


@dataclass(frozen=True)
class Difference:
    """Mean paired difference, with the p-value of no difference, or None if there is none."""

    estimate: Estimate
    p: float | None


def signed(value: float) -> str:
    """A difference in AP such as `+1.2`; one that rounds to 0 has no minus."""
    return f"{round(value, 1) + 0.0:+.1f}"


def scipy_stats() -> ModuleType:
    """`scipy.stats`, which the extra `lab` installs.

    Raises:
        NormdetError: scipy is not installed.
    """
    try:
        import scipy.stats
    except ImportError as error:
        raise NormdetError(
            "intervals and p-values need scipy: pip install 'normdet[lab]'"
        ) from error
    return scipy.stats


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and t interval of independent values, one per seed.

    Raises:
        ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("no values")
    return paired(values, [0.0] * len(values)).estimate


def paired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """`a` less `b`, seed by seed: the mean, its t interval and the paired t-test's p-value.

    There is no p-value for a single seed, nor for equal differences, for which a t-test would claim
    certainty (unless all are 0: then p is 1).
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    if n == 1:
        return Difference(Estimate(mean, n), None)
    if statistics.stdev(differences) <= 1e-12 * max(map(abs, differences)):
        return Difference(Estimate(mean, n, 0.0), 1.0 if mean == 0 else None)
    test = scipy_stats().ttest_rel(a, b)
    interval = test.confidence_interval(LEVEL)
    return Difference(
        Estimate(mean, n, float(interval.high - interval.low) / 2), float(test.pvalue)
    )


def least_errors(n: int, family: int) -> float:
    """Standard errors that a difference over `n` seeds needs to pass Holm's first step."""
    return float(scipy_stats().t.isf((1 - LEVEL) / 2 / family, n - 1))


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
    """Holm's step-down adjustment. Below 0.05, the family errs at most once in twenty.

    The smallest of `m` is multiplied by `m`, the next by `m - 1` and so on, none below the one
    before it nor above 1; returned in the order given.

    Args:
        p_values: of the comparisons that could be tested.
        family: `m`, if more were planned than could be tested.
    """
    family = len(p_values) if family is None else family
    adjusted = [0.0] * len(p_values)
    running = 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (family - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
