"""Arguments of several commands: config keys stand anywhere, and lists and counts read alike."""

import argparse

import pytest
import torch

from normdet import NormdetError
from normdet.arguments import check_counts, train_arguments
from normdet.convert import command as convert
from normdet.lab import demo
from normdet.lab.compare import command as compare
from normdet.lab.doctor import command as doctor
from normdet.medical.predict import command as predict
from normdet.weights import command as inspect_weights
from normdet.weights import save_file

CONFIG = ["--config-file", "a.yaml"]


@pytest.mark.parametrize(
    ("parse", "words", "flag"),
    [
        (train_arguments, CONFIG, ["--norm", "GN"]),
        (lambda argv: train_arguments(argv, "eval"), CONFIG, ["--norm", "GN"]),
        (inspect_weights.parse_arguments, [*CONFIG, "w.pth"], ["--norm", "GN"]),
        (convert.parse_arguments, [*CONFIG, "w", "--to", "GN", "--out", "x.pth"], ["--norm", "BN"]),
        (doctor.parse_arguments, [*CONFIG, "--weights", "w.pth"], ["--norm", "BN"]),
        (compare.parse_arguments, [*CONFIG, "--out", "x"], ["--norms", "GN"]),
        (demo.parse_arguments, [], ["--output", "x"]),
    ],
)
def test_keys_may_stand_around_a_flag(parse, words, flag):
    args = parse([*words, "SOLVER.BASE_LR", "-1", *flag, "SEED", "1"])
    assert args.opts == ["SOLVER.BASE_LR", "-1", "SEED", "1"]
    assert str(getattr(args, flag[0].strip("-"))) == flag[1]


def test_images_may_stand_around_a_flag():
    words = ["a.png", "--weights", "w", "b.png", "--out", "x", "--opts", "SEED", "1"]
    args = predict.parse_arguments(words)
    assert args.images == ["a.png", "b.png"] and args.opts == ["SEED", "1"]


def test_parts_are_a_list():
    assert train_arguments([*CONFIG, "--norm-parts", "fpn,box_head"]).norm_parts == [
        "fpn", "box_head",
    ]  # fmt: skip
    assert train_arguments([*CONFIG, "--norm-parts", ""]).norm_parts is None


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (inspect_weights.main, ["{}"]),
        (convert.main, ["{}", "--to", "GN", "--out", "x.pth"]),
        (doctor.main, ["a.png", "--weights", "{}"]),
        (predict.main, ["a.png", "--weights", "{}", "--out", "x"]),
    ],
)
def test_parts_go_wherever_the_norm_goes(main, words, tmp_path):
    weights = str(tmp_path / "w.safetensors")
    save_file({"model": {"a": torch.zeros(1)}}, weights)
    model = ["--config-file", "quickstart/base.yaml", "--norm", "BN", "--norm-parts", "nowhere"]
    with pytest.raises(NormdetError, match="unknown part 'nowhere'"):
        main([word.format(weights) for word in words] + model)


def test_counts_are_one_at_least():
    check_counts(argparse.Namespace(jobs=None, seeds=1), "jobs", "seeds")
    with pytest.raises(NormdetError, match="^--max-images 0: at least one is needed$"):
        check_counts(argparse.Namespace(max_images=0), "max_images")
