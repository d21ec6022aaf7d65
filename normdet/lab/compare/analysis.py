"""Analyse runs: means, differences to the baseline, and which norm to choose."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from normdet.errors import NormdetError
from normdet.lab.compare.runs import CRASHED, DIVERGED, DONE, TEST, Run
from normdet.lab.compare.stats import LEVEL, Difference, Estimate, estimate, holm, paired


@dataclass(frozen=True)
class Group:
    """The runs of one norm at one batch size.

    Attributes:
        norm: its name.
        batch_size: images per step.
        values: the metric by seed, of the runs that ended well.
        diverged: how many seeds had a loss that is not finite.
        crashed: how many ended with an error.
        missing: how many have not run.
    """

    norm: str
    batch_size: int
    values: Mapping[int, float]
    diverged: int = 0
    crashed: int = 0
    missing: int = 0

    @property
    def whole(self) -> bool:
        """Whether its mean may be compared; a mean without the diverged seeds would flatter."""
        return bool(self.values) and not self.diverged

    @property
    def estimate(self) -> Estimate:
        """Mean and interval over seeds."""
        return estimate(list(self.values.values()))

    @property
    def lacks(self) -> str:
        """Which seeds have no result, in words; `""` if all have one."""
        counts = {"diverged": self.diverged, "crashed": self.crashed, "not run": self.missing}
        total = len(self.values) + sum(counts.values())
        found = [f"{count} of {total} {word}" for word, count in counts.items() if count]
        return "not run" if self.missing == total else ", ".join(found)


@dataclass(frozen=True)
class Contrast:
    """One norm less another at one batch size; `adjusted` is Holm's p-value within the family."""

    norm: str
    other: str
    batch_size: int
    difference: Difference
    adjusted: float | None = None

    @property
    def significant(self) -> bool:
        """Whether it counts as a difference under the family-wise error."""
        return self.adjusted is not None and self.adjusted < 1 - LEVEL


@dataclass(frozen=True)
class Choice:
    """The norm with the highest mean at one batch size, and how sure that is.

    Attributes:
        batch_size: images per step.
        best: of the norms with the most seeds and none diverged.
        rivals: the best less each norm from which it does not differ significantly.
        beaten: the norms that it beats significantly.
        left_out: those that are not compared because they lack seeds.
    """

    batch_size: int
    best: Group
    rivals: tuple[Contrast, ...]
    beaten: tuple[str, ...]
    left_out: tuple[Group, ...]


def groups(
    runs: Iterable[Run], metric: str, planned: Iterable[tuple[str, int, int]] = ()
) -> list[Group]:
    """The reported runs by norm and batch size, in the order of their first appearance.

    Args:
        runs: of the comparison; those that picked rates are ignored.
        metric: the column.
        planned: norm, batch size and seed of all planned runs; a missing one counts as not run. By
            default every seed of any run is planned.

    Raises:
        NormdetError: two runs of one norm, batch size and seed.
    """
    tested: dict[tuple[str, int, int], Run] = {}
    for run in runs:
        if run.role == TEST and (other := tested.setdefault(run.key, run)) is not run:
            raise NormdetError(
                f"{run.name} and {other.name} are of one norm, batch size and seed: "
                "two rates are two tables"
            )
    keys = list(planned) or list(tested)
    seeds = dict.fromkeys(seed for *_, seed in keys)
    sizes = sorted({size for _, size, _ in keys})
    return [
        _group(norm, size, [tested.get((norm, size, seed)) for seed in seeds], metric)
        for norm in dict.fromkeys(norm for norm, *_ in keys)
        for size in sizes
    ]


def _group(norm: str, size: int, runs: Sequence[Run | None], metric: str) -> Group:
    there = [run for run in runs if run]
    done = {
        run.seed: score
        for run in there
        if run.status == DONE and (score := run.score(metric)) is not None
    }
    diverged, crashed = (
        sum(run.status == status for run in there) for status in (DIVERGED, CRASHED)
    )
    return Group(norm, size, done, diverged, crashed, len(runs) - len(done) - diverged - crashed)


def against(all_groups: Sequence[Group], baseline: str) -> list[Contrast]:
    """Every norm less the baseline at every batch size, as one family for Holm's adjustment.

    Planned runs without a result count in the family, so that an unfinished table shows no
    difference as significant that the finished one would not.
    """
    base = {group.batch_size: group for group in all_groups if group.norm == baseline}
    return _adjusted(
        [
            _compare(group, base[group.batch_size])
            for group in all_groups
            if group.norm != baseline and group.batch_size in base
        ]
    )


def against_best(
    all_groups: Sequence[Group], controls: Sequence[str], arms: Sequence[str], planned: int
) -> list[Contrast]:
    """Each arm less the control with the highest mean at its batch size.

    That the best of several controls is taken speaks against the arms.

    Args:
        planned: contrasts of the whole family, over which Holm adjusts.
    """
    able = [group for group in all_groups if group.norm in controls and group.whole]
    best = {
        size: max((g for g in able if g.batch_size == size), key=lambda g: g.estimate.mean)
        for size in {group.batch_size for group in able}
    }
    found = [
        _compare(group, best[group.batch_size])
        for group in all_groups
        if group.norm in arms and group.batch_size in best
    ]
    return _adjusted([*found, *[None] * (planned - len(found))])


def choices(all_groups: Sequence[Group]) -> list[Choice]:
    """At each batch size the norm with the highest mean, and how sure that is.

    The same data choose the best mean and test it. So all pairs of a batch size are tested and
    adjusted together, whichever is the best. A norm with fewer seeds than another is not compared,
    since its seeds may be the easy ones.
    """
    found = []
    for size in sorted({group.batch_size for group in all_groups}):
        here = [group for group in all_groups if group.batch_size == size]
        most = max(len(group.values) for group in here)
        able = [group for group in here if group.whole and len(group.values) == most]
        if able:
            found.append(_choice(able, [group for group in here if group not in able]))
    return found


def _choice(able: Sequence[Group], left_out: Sequence[Group]) -> Choice:
    best = max(able, key=lambda group: group.estimate.mean)
    # The best comes first in its pairs, so that their differences are its lead.
    able = [best, *(group for group in able if group is not best)]
    pairs = _adjusted([_compare(a, b) for a, b in itertools.combinations(able, 2)])
    leads = [pair for pair in pairs if pair.norm == best.norm]
    ahead = [pair.significant and pair.difference.estimate.mean > 0 for pair in leads]
    rivals = tuple(pair for pair, won in zip(leads, ahead, strict=True) if not won)
    beaten = tuple(pair.other for pair, won in zip(leads, ahead, strict=True) if won)
    return Choice(best.batch_size, best, rivals, beaten, tuple(left_out))


def _compare(a: Group, b: Group) -> Contrast | None:
    seeds = [seed for seed in a.values if seed in b.values]
    if not (a.whole and b.whole and seeds):
        return None
    difference = paired([a.values[seed] for seed in seeds], [b.values[seed] for seed in seeds])
    return Contrast(a.norm, b.norm, a.batch_size, difference)


def _adjusted(family: Sequence[Contrast | None]) -> list[Contrast]:
    members = [member for member in family if member is not None]
    tested = [member.difference.p for member in members if member.difference.p is not None]
    adjusted = iter(holm(tested, len(family)))
    return [
        Contrast(
            m.norm, m.other, m.batch_size, m.difference,
            None if m.difference.p is None else next(adjusted),
        )
        for m in members
    ]  # fmt: skip
