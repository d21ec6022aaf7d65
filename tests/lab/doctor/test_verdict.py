"""The verdict's one line, and the commands that follow from it."""

import pytest

from normdet.lab.doctor.examination import Examination
from normdet.lab.doctor.rows import Row
from normdet.lab.doctor.verdict import Invocation, next_commands, span, verdict

STAGES = ("stem", "res2", "res3", "res4", "res5")


def found(*distances: float | None, noise: float | None = 0.3) -> Examination:
    sizes = {} if noise is None else {1: noise * 1.4, 2: noise}
    rows = [
        Row(name, name, 8, distance=distance, noise=sizes)
        for name, distance in zip(STAGES, distances, strict=True)
    ]
    compared = "the stored statistics" if any(d is not None for d in distances) else ""
    return Examination(32, compared, rows, rows, [])


def case(**changes) -> Invocation:
    given = dict(config_file="my.yaml", weights="w/r50.pth", norm="FrozenBN")
    return Invocation(**{**given, "images": ["my images", "b.png"], "dataset": None} | changes)


def test_stages_that_are_off_are_named_with_their_distance():
    said = verdict(found(0.1, 0.1, 0.2, 3.14, 3.12), case())
    assert said == (
        "res4-res5 see statistics 3.1 sigma from those stored: a learnable norm is worth it; "
        "at 2 images per GPU choose GN or FRN+TLU, not BN"
    )
    assert "0.6 to 3.1 sigma" in verdict(found(0.6, 0.1, 0.2, 3.14, 3.1), case())
    assert "stem, res4-res5 see" in verdict(found(0.6, 0.1, 0.2, 3.14, 3.1), case())


def test_statistics_that_fit_are_kept():
    fitting = found(0.1, 0.08, 0.1, 0.14, 0.15)
    assert "within 0.15 sigma" in verdict(fitting, case())
    assert "FrozenBN fits these images, keep it" in verdict(fitting, case())
    assert next_commands(fitting, case(opts=["SEED", "1"])) == [
        "normdet train --config-file my.yaml MODEL.WEIGHTS w/r50.pth SEED 1"
    ]


def test_statistics_that_fit_are_frozen_where_batches_are_too_small_for_bn():
    fitting = found(0.1, 0.08, 0.1, 0.14, 0.15, noise=0.4)
    trained = case(norm="BN", norm_flag="BN", norm_parts=["backbone", "fpn"])
    said = verdict(fitting, trained)
    assert said.endswith(": freeze them; batches of 2 images are too unlike for BN")
    assert next_commands(fitting, trained) == [
        "normdet train --config-file my.yaml --norm FrozenBN --norm-parts backbone,fpn "
        "MODEL.WEIGHTS w/r50.pth"
    ]
    assert "--norm-parts backbone M" in next_commands(fitting, case(norm="BN"))[0]
    for norm in ("FrozenBN", "SyncBN"):
        assert f"{norm} fits these images, keep it" in verdict(fitting, case(norm=norm))


def test_stages_without_statistics_get_no_verdict():
    said = verdict(found(None, None, 0.1, 0.14, 0.15), case())
    assert said.startswith("res3-res5 see statistics within 0.15 sigma")


def test_in_between_a_comparison_is_advised():
    said = verdict(found(0.1, 0.1, 0.1, 0.3, 0.3), case())
    assert "somewhat off" in said and "compare both" in said


def test_steady_batches_leave_bn_in_the_choice():
    steady = found(0.1, 0.1, 0.1, 0.8, 0.8, noise=0.05)
    assert "BN sees steady statistics" in verdict(steady, case())
    assert next_commands(steady, case())[0] == (
        "normdet train --config-file my.yaml --norm BN --norm-parts backbone "
        "MODEL.WEIGHTS w/r50.pth"
    )
    trained = case(norm="BN", norm_flag="BN", norm_parts=["backbone", "fpn"])
    assert "--norm BN --norm-parts backbone,fpn MODEL" in next_commands(steady, trained)[0]
    assert "too few images" in verdict(found(0.1, 0.1, 0.1, 1, 1, noise=None), case())
    assert "at 1 image per GPU" in verdict(found(0, 0, 0, 0, 1), case(images_per_gpu=1))


def test_commands_convert_and_train_each_norm_and_thaw_what_is_off_and_frozen():
    commands = next_commands(found(0.1, 0.1, 0.1, 0.8, 0.8), case())
    assert commands[:2] == [
        "normdet convert w/r50.pth --to GN --keep 0.9 --config-file my.yaml --images 'my images' "
        "--images b.png --out r50-gn.pth",
        "normdet train --config-file r50-gn.yaml OUTPUT_DIR output/r50-gn",
    ]
    assert commands[2].endswith("--out r50-frn-tlu.pth") and "--to FRN+TLU" in commands[2]
    thawed = next_commands(found(0.8, 0.1, 0.1, 0.8, 0.8), case(dataset="coco:a.json:b"))
    assert "--dataset coco:a.json:b" in thawed[0]
    assert thawed[1].endswith("MODEL.BACKBONE.FREEZE_AT 0")
    of_parts = case(norm_flag="BN", norm_parts=["backbone", "fpn"])
    named = next_commands(found(0.1, 0.1, 0.1, 0.8, 0.8), of_parts)
    assert "--norm BN --norm-parts backbone,fpn" in named[0] and "--norm" not in named[1]


def test_folded_statistics_get_no_verdict_on_the_norm():
    said = verdict(found(None, None, None, None, None), case())
    assert "cannot be told" in said and "choose GN or FRN+TLU" in said
    assert not any("--norm BN " in line for line in next_commands(found(*[None] * 5), case()))


@pytest.mark.parametrize(
    "chosen, text",
    [
        (["stem"], "stem"),
        (["res2", "res3", "res5"], "res2-res3, res5"),
        (list(STAGES), "stem-res5"),
    ],
)
def test_neighbours_are_joined(chosen, text):
    assert span(chosen, STAGES) == text
