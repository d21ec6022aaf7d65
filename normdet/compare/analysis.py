"""From runs to statements: means, differences to the baseline, and which norm to choose."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from normdet.compare.cell import DIVERGED, DONE
from normdet.compare.stats import LEVEL, Difference, Estimate, estimate, holm, paired


@dataclass(frozen=True)
class Group:
    """The runs of one norm at one batch size.

    Attributes:
        norm: its name.
        batch_size: images a step.
        values: the metric by seed, of the runs that ended well.
        diverged: how many seeds ran into a loss that is not finite.
        missing: how many crashed or have not run.
    """

    norm: str
    batch_size: int
    values: Mapping[int, float]
    diverged: int = 0
    missing: int = 0

    @property
    def whole(self) -> bool:
        """Whether its mean may be compared: leaving out the seeds that diverged would flatter."""
        return bool(self.values) and not self.diverged

    @property
    def estimate(self) -> Estimate:
        """Mean and interval over seeds."""
        return estimate(list(self.values.values()))


@dataclass(frozen=True)
class Comparison:
    """One norm less another at one batch size; `adjusted` is Holm's p-value within the family."""

    norm: str
    other: str
    batch_size: int
    difference: Difference
    adjusted: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the family-wise error allows to call it a difference."""
        return self.adjusted is not None and self.adjusted < 1 - LEVEL


@dataclass(frozen=True)
class Choice:
    """The norm with the highest mean at one batch size, and those that may be as good."""

    batch_size: int
    best: Group
    rivals: tuple[str, ...]
    beaten: tuple[str, ...]


def groups(rows: Iterable[Mapping], metric: str) -> list[Group]:
    """The reported runs by norm and batch size, in the order of their first appearance."""
    reported = [row for row in rows if row["role"] == "test"]
    seeds = {row["seed"] for row in reported}
    found = []
    for norm in dict.fromkeys(row["norm"] for row in reported):
        for size in sorted({row["batch_size"] for row in reported}):
            own = [row for row in reported if (row["norm"], row["batch_size"]) == (norm, size)]
            done = {
                row["seed"]: row[metric]
                for row in own
                if row["status"] == DONE and row.get(metric) is not None
            }
            diverged = sum(row["status"] == DIVERGED for row in own)
            found.append(Group(norm, size, done, diverged, len(seeds) - len(done) - diverged))
    return found


def against(all_groups: Sequence[Group], baseline: str) -> list[Comparison]:
    """Every norm less the baseline at every batch size; one family for Holm's adjustment."""
    base = {group.batch_size: group for group in all_groups if group.norm == baseline}
    return _adjusted(
        [
            _compare(group, base[group.batch_size])
            for group in all_groups
            if group.norm != baseline and group.batch_size in base
        ]
    )


def choices(all_groups: Sequence[Group]) -> list[Choice]:
    """At each batch size the norm with the highest mean, and how sure that is.

    The best of several means is chosen by the very data that would test it; so all pairs of a batch
    size are tested and adjusted together, whichever of them turns out to be the best.
    """
    found = []
    for size in sorted({group.batch_size for group in all_groups}):
        able = [group for group in all_groups if group.batch_size == size and group.whole]
        if not able:
            continue
        pairs = _adjusted([_compare(a, b) for a, b in itertools.combinations(able, 2)])
        apart = {frozenset((pair.norm, pair.other)) for pair in pairs if pair.significant}
        best = max(able, key=lambda group: group.estimate.mean)
        others = [group.norm for group in able if group is not best]
        beaten = tuple(name for name in others if {best.norm, name} in apart)
        rivals = tuple(name for name in others if name not in beaten)
        found.append(Choice(size, best, rivals, beaten))
    return found


def _compare(a: Group, b: Group) -> Comparison | None:
    seeds = [seed for seed in a.values if seed in b.values]
    if not (a.whole and b.whole and seeds):
        return None
    difference = paired([a.values[seed] for seed in seeds], [b.values[seed] for seed in seeds])
    return Comparison(a.norm, b.norm, a.batch_size, difference)


def _adjusted(family: Iterable[Comparison | None]) -> list[Comparison]:
    members = [member for member in family if member is not None]
    tested = [member.difference.p for member in members if member.difference.p is not None]
    adjusted = iter(holm(tested))
    return [
        Comparison(
            m.norm, m.other, m.batch_size, m.difference,
            None if m.difference.p is None else next(adjusted),
        )
        for m in members
    ]  # fmt: skip
