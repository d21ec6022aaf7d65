"""The grid: equal images seen, the linear rule, and which runs there are."""

import pytest

from normdet import NormdetError
from normdet.arguments import train_arguments
from normdet.config import load_config
from normdet.lab.compare.command import parse_arguments
from normdet.lab.compare.plan import Arm, Cell, Plan, config_hash, parse_arms, scaled


def reference(*opts):
    return load_config(
        "quickstart/base.yaml",
        ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 300, "SOLVER.STEPS", "(200, 250)",
         "SOLVER.BASE_LR_END", 0.002, *opts],
    )  # fmt: skip


def plan(**changes):
    made = {
        "config_file": "quickstart/base.yaml", "opts": (), "arms": parse_arms("GN,BN", [], []),
        "batch_sizes": (1, 2), "seeds": (1, 2), "factors": (1.0,), "train": ("quickstart:train",),
        "val": "", "test": "quickstart:test",
    }  # fmt: skip
    return Plan(**{**made, **changes})


@pytest.mark.parametrize("images", [1, 2, 3, 4, 7, 8, 16])
def test_every_batch_size_sees_the_same_images_to_within_one_batch(images):
    keys = scaled(reference(), images)
    seen = keys["SOLVER.MAX_ITER"] * images
    assert 1200 <= seen < 1200 + images
    assert keys["SOLVER.BASE_LR"] == pytest.approx(0.02 * images / 4)
    assert keys["SOLVER.BASE_LR_END"] == pytest.approx(0.002 * images / 4)
    for name, wanted in (("SOLVER.STEPS", (800, 1000)), ("SOLVER.WARMUP_ITERS", (200,))):
        steps = keys[name] if isinstance(keys[name], tuple) else (keys[name],)
        assert all(0 <= n * images - w < images for n, w in zip(steps, wanted, strict=True))


def test_one_image_of_four_by_hand():
    keys = scaled(reference("TEST.EVAL_PERIOD", 100), 1, factor=0.5)
    assert keys["SOLVER.MAX_ITER"] == 1200 and keys["SOLVER.STEPS"] == (800, 1000)
    assert keys["SOLVER.WARMUP_ITERS"] == 200 and keys["TEST.EVAL_PERIOD"] == 400
    assert keys["SOLVER.BASE_LR"] == 0.0025
    # Four single images move the average as far as one batch of four: 0.9 = (1 - m)^4.
    assert (1 - keys["MODEL.NORMDET.BN.MOMENTUM"]) ** 4 == pytest.approx(0.9)
    assert keys["MODEL.NORMDET.BRN.WARMUP"] == 20000 and keys["MODEL.NORMDET.BRN.OPEN"] == 80000
    assert keys["SOLVER.CHECKPOINT_PERIOD"] == 400


def test_at_the_configs_own_batch_size_nothing_changes():
    cfg = reference()
    changed = cfg.clone()
    changed.merge_from_list([str(x) for pair in scaled(cfg, 4).items() for x in pair])
    assert changed == cfg


def test_a_norm_sees_the_whole_batch():
    keys = scaled(reference("SOLVER.ACCUMULATE_STEPS", 2, "SOLVER.REFERENCE_WORLD_SIZE", 8), 2)
    assert keys["SOLVER.ACCUMULATE_STEPS"] == 1 and keys["SOLVER.REFERENCE_WORLD_SIZE"] == 0


def test_periods_of_zero_stay_zero():
    assert (
        scaled(reference("TEST.EVAL_PERIOD", 0, "SOLVER.STEPS", "()"), 1)["TEST.EVAL_PERIOD"] == 0
    )


def test_a_cells_config_and_command_are_the_same(tmp_path):
    p = plan(arms=(Arm("slow GN", "GN", ("SOLVER.WARMUP_ITERS", "80"), "random"),))
    cell = Cell(p.arms[0], 1, 2)
    args = train_arguments(p.arguments(cell, tmp_path))
    cfg = load_config(args.config_file, args.opts, args.norm)
    assert config_hash(cfg) == config_hash(p.config(cell))
    assert args.resume and cfg.OUTPUT_DIR == str(tmp_path) and cfg.SEED == 2
    assert cfg.SOLVER.IMS_PER_BATCH == 1 and cfg.SOLVER.MAX_ITER == 800
    assert cfg.SOLVER.WARMUP_ITERS == 160  # the variant's own, scaled as all are
    assert cfg.MODEL.RESNETS.NORM == "GN" and cfg.DATASETS.TEST == ("quickstart:test",)


def test_the_hash_covers_what_decides_a_run():
    p = plan()
    one = config_hash(p.config(Cell(p.arms[0], 2, 1)))
    assert one == config_hash(p.config(Cell(p.arms[0], 2, 2)))  # the seed stands beside it
    assert one != config_hash(p.config(Cell(p.arms[1], 2, 1)))
    assert one != config_hash(p.config(Cell(p.arms[0], 2, 1, 0.5)))
    moved = plan(opts=("OUTPUT_DIR", "elsewhere", "MODEL.DEVICE", "cpu"))
    assert one == config_hash(moved.config(Cell(p.arms[0], 2, 1)))


def test_rates_are_picked_with_a_seed_and_a_set_that_are_not_reported():
    p = plan(factors=(0.5, 1.0, 2.0), val="split:val:0.2:quickstart:train")
    tuning = p.tuning_cells()
    assert len(tuning) == 2 * 2 * 3 and {cell.seed for cell in tuning} == {0}
    assert p.config(tuning[0]).DATASETS.TEST == (p.val,)
    assert p.test_cells({}) == []
    cells = p.test_cells({("GN", 1): 2.0})
    assert [(c.arm.name, c.batch_size, c.seed, c.factor) for c in cells] == [
        ("GN", 1, 1, 2.0), ("GN", 1, 2, 2.0),
    ]  # fmt: skip
    assert p.config(cells[0]).DATASETS.TEST == ("quickstart:test",)
    every = [*tuning, *p.test_cells({(a.name, b): 1.0 for a in p.arms for b in (1, 2)})]
    assert len({cell.slug for cell in every}) == len(every)


def test_a_larger_grid_keeps_the_cells_of_the_smaller():
    small = plan()
    large = plan(batch_sizes=(1, 2, 4), seeds=(1, 2, 3), arms=parse_arms("GN,BN,IN", [], []))
    assert {cell.slug for cell in small.test_cells()} < {cell.slug for cell in large.test_cells()}


def test_variants_and_inits():
    arms = parse_arms(
        "GN,FRN+TLU",
        ["GN, 16 groups=GN MODEL.NORMDET.GN.NUM_GROUPS 16"],
        ["random", "GN=weights/gn.pth"],
    )
    assert [arm.name for arm in arms] == ["GN", "FRN+TLU", "GN, 16 groups"]
    assert arms[0].opts == ["MODEL.WEIGHTS", "weights/gn.pth"]
    assert arms[2].opts == ["MODEL.NORMDET.GN.NUM_GROUPS", "16", "MODEL.WEIGHTS", ""]
    assert Arm("GN", "GN").opts == []  # the config's own weights


@pytest.mark.parametrize(
    "norms, variants, inits, said",
    [
        ("GM", [], [], "'GN'"),
        ("", [], [], "nothing to compare"),
        ("GN,GN", [], [], "not distinct: GN"),
        ("GN+WS", ["GN/WS=GN"], [], "not distinct"),  # would share a folder
        ("GN", ["x=GN KEY"], [], "NAME=OPTION KEY VALUE"),
        ("GN", ["=GN"], [], "NAME=OPTION"),
        ("GN", ["../..=GN"], [], "not distinct: an empty one"),
        ("GN", [], ["BN=random"], "none of GN is 'BN'"),
        ("GN", ["x=GN MODEL.FPN.NORM '"], [], "No closing quotation"),
        ("GN", ["x=GN SOLVER.MAX_ITER 9"], [], "SOLVER.MAX_ITER, which is the same for all"),
        ("GN", ["x=GN DATASETS.TRAIN ('a',)"], [], "DATASETS.TRAIN, which is the same"),
    ],
)
def test_mistakes_are_named(norms, variants, inits, said):
    with pytest.raises(NormdetError, match=said):
        parse_arms(norms, variants, inits)


def seeds_of(text):
    words = ["--config-file", "a.yaml", "--out", "x", f"--seeds={text}"]
    return parse_arguments(words).seeds


@pytest.mark.parametrize(
    "text, seeds", [("3", (1, 2, 3)), ("4-6", (4, 5, 6)), ("1,5", (1, 5)), ("7-7", (7,))]
)
def test_seeds_are_a_count_a_range_or_a_list(text, seeds):
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["0", "x", "5-4", "0,1", "", "1,", "-3"])
def test_other_seeds_are_refused(text):
    with pytest.raises(NormdetError, match="a count such as 3"):
        seeds_of(text)
