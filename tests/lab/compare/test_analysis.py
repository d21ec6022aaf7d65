"""Statements from rows: which norms are compared, left out or chosen."""

import pytest

from normdet import NormdetError
from normdet.lab.compare import analysis
from normdet.lab.compare.runs import Run


def rows(values, size=2, **changes):
    """`{norm: [AP of seed 1, 2, ...]}`; None for a diverged run, "crash" for a crashed one."""
    made = []
    for norm, scores in values.items():
        for seed, score in enumerate(scores, start=1):
            status = {None: "diverged", "crash": "crashed"}.get(score, "done")
            value = score if status == "done" else None
            row = {"run": f"{norm}-b{size}-s{seed}", "norm": norm, "batch_size": size}
            row |= {"seed": seed, "status": status, "box_AP": value}
            made.append(Run.from_row(row | changes))
    return made


def rivals(choice):
    return [pair.other for pair in choice.rivals]


def test_a_group_counts_ended_diverged_and_missing_runs():
    table = rows({"GN": [40.0, 41.0, 42.0], "BN": [30.0, None, "crash"]})
    table += rows({"GN": [99.0]}, role="tuning")
    gn, bn = analysis.groups(table, "box_AP")
    assert gn.whole and gn.estimate.mean == 41 and dict(gn.values) == {1: 40, 2: 41, 3: 42}
    assert (dict(bn.values), bn.diverged, bn.crashed, bn.whole) == ({1: 30}, 1, 1, False)
    assert gn.lacks == "" and bn.lacks == "1 of 3 diverged, 1 of 3 crashed"


def test_a_planned_run_without_a_row_counts_as_not_run():
    planned = [(norm, 2, seed) for norm in ("GN", "BN") for seed in (1, 2)]
    gn, bn = analysis.groups(rows({"GN": [40.0]}), "box_AP", planned)
    assert (gn.missing, gn.lacks) == (1, "1 of 2 not run")
    assert (bn.missing, bn.lacks) == (2, "not run")


def test_two_runs_of_one_seed_are_refused():
    twice = rows({"GN": [40.0]}, run="GN-b2-s1") + rows({"GN": [41.0]}, run="GN-b2-s1-lr2")
    with pytest.raises(NormdetError, match="GN-b2-s1-lr2 and GN-b2-s1 are of one norm"):
        analysis.groups(twice, "box_AP")


def test_holm_counts_the_comparisons_that_could_not_be_made():
    table = rows({"FrozenBN": [30.0, 35.0, 40.0], "GN": [32.0, 37.1, 41.9], "BN": [None, 1.0, 2.0]})
    (gn,) = analysis.against(analysis.groups(table, "box_AP"), "FrozenBN")
    assert gn.adjusted == pytest.approx(2 * gn.difference.p)


def test_differences_are_seed_by_seed_and_adjusted_over_all_batch_sizes():
    table = rows({"FrozenBN": [30.0, 35.0, 40.0], "GN": [32.0, 37.1, 41.9]}, size=1)
    table += rows({"FrozenBN": [30.0, 35.0, 40.0], "GN": [31.0, 34.0, 41.0]}, size=2)
    one, two = analysis.against(analysis.groups(table, "box_AP"), "FrozenBN")
    assert (one.norm, one.batch_size, two.batch_size) == ("GN", 1, 2)
    assert one.difference.estimate.mean == pytest.approx(2.0)  # spread of seeds cancels
    assert one.adjusted == pytest.approx(2 * one.difference.p) and one.significant
    assert two.adjusted == two.difference.p and not two.significant


def test_only_common_seeds_are_paired_and_diverged_norms_not_compared():
    table = rows(
        {"FrozenBN": [30.0, "crash", 40.0], "GN": [31.0, 50.0, 42.0], "BN": [1.0, None, 2]}
    )
    found = analysis.against(analysis.groups(table, "box_AP"), "FrozenBN")
    assert [c.norm for c in found] == ["GN"]
    assert found[0].difference.estimate.n == 2
    assert found[0].difference.estimate.mean == pytest.approx(1.5)


def test_the_choice_is_adjusted_for_all_pairs():
    table = rows({"A": [40.0, 41.0, 42.0], "B": [40.1, 40.8, 42.0], "C": [10.0, 11.0, 12.1]})
    (choice,) = analysis.choices(analysis.groups(table, "box_AP"))
    assert choice.best.norm == "A" and rivals(choice) == ["B"] and choice.beaten == ("C",)
    assert choice.rivals[0].difference.estimate.mean == pytest.approx(0.1 / 3)


def test_a_norm_with_fewer_seeds_is_left_out_and_named():
    table = rows({"A": [40.0, 41.0, 42.0], "B": [99.0, "crash", "crash"], "C": [1.0, None, 2.0]})
    (choice,) = analysis.choices(analysis.groups(table, "box_AP"))
    assert choice.best.norm == "A" and not choice.rivals and not choice.beaten
    assert [(g.norm, g.lacks) for g in choice.left_out] == [
        ("B", "2 of 3 crashed"), ("C", "1 of 3 diverged"),
    ]  # fmt: skip


def test_a_lead_that_common_seeds_contradict_is_none():
    # A has an easy fourth seed and B a hard first one; on their common seeds B is ahead.
    table = rows({"A": ["crash", 20.0, 30.1, 99.0], "B": [1.0, 30.0, 40.0, "crash"]})
    (choice,) = analysis.choices(analysis.groups(table, "box_AP"))
    assert choice.best.norm == "A" and rivals(choice) == ["B"] and not choice.beaten
    (lead,) = choice.rivals
    assert lead.significant and lead.difference.estimate.mean < 0


def test_one_seed_makes_no_certain_choice():
    (choice,) = analysis.choices(analysis.groups(rows({"A": [40.0], "B": [1.0]}), "box_AP"))
    assert choice.best.norm == "A" and rivals(choice) == ["B"] and not choice.beaten


def test_a_norm_that_diverged_is_never_chosen():
    (choice,) = analysis.choices(analysis.groups(rows({"A": [99, None], "B": [1, 2]}), "box_AP"))
    assert choice.best.norm == "B" and not choice.rivals and not choice.beaten
    assert analysis.choices(analysis.groups(rows({"A": [None]}), "box_AP")) == []


def test_arms_are_compared_with_the_best_control_of_their_batch_size():
    table = rows({"A": [30.0, 31.0], "B": [32.0, 33.0], "GN": [35.0, 36.5], "FRN": [9.0, 9.0]})
    table += rows({"A": [40.0, 41.0], "B": [None, 99.0], "GN": [41.0, 42.5]}, size=1)
    found = analysis.against_best(
        analysis.groups(table, "box_AP"), ("A", "B"), ("GN", "FRN"), planned=8
    )
    pairs = {(one.norm, one.other, one.batch_size): one for one in found}
    # B has no mean at 1 image: a seed of it diverged.
    assert pairs.keys() == {("GN", "A", 1), ("GN", "B", 2), ("FRN", "B", 2)}
    assert pairs["GN", "B", 2].difference.estimate.mean == 3.25
    surest = min(found, key=lambda one: one.difference.p)
    assert surest.adjusted == pytest.approx(8 * surest.difference.p)
