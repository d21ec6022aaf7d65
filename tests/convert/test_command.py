"""`normdet convert` from files to files."""

import json

import pytest

from normdet.cli import main
from normdet.weights import load_file


@pytest.fixture
def command(small_config, small_weights, picture_folder, tmp_path):
    """Runs the command on the small detector, with further words at the end."""

    def run(*words, images=True):
        pictures = ["--images", str(picture_folder)] if images else []
        base = [str(small_weights), "--config-file", str(small_config), "--size", "96"]
        return main(["convert", *base, "--out", f"{tmp_path}/out.pth", *pictures, *words])

    return run


@pytest.mark.slow
def test_distilled_from_files_to_files(command, tmp_path, capsys):
    words = ["--to", "FRN+TLU", "--rung", "distilled", "--steps", "2", "--batch-size", "2"]
    assert command(*words, "--keep", "0.5") == 0
    shown = capsys.readouterr().out
    assert "on images that were not fitted" in shown and "normdet train --config-file" in shown
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["rung"] == ["calibrated", "distilled"] and len(record["losses"]) == 2
    assert record["achieved"]["distilled"]["error res5"] > 0
    checkpoint = load_file(tmp_path / "out.pth")
    assert checkpoint["normdet"]["norms"]["MODEL.RESNETS.NORM"] == "FRN+TLU"
    assert {p.name for p in tmp_path.iterdir()} == {"out.pth", "out.json", "out.yaml", "out.pth.md"}
    card = (tmp_path / "out.pth.md").read_text()
    assert "converted without labels" in card and "| distilled" in card
    assert str(tmp_path) not in card.partition("## Use")[0]

    # The config beside the weights reads them, with the learned epsilon.
    assert main(["train", "--config-file", f"{tmp_path}/out.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "start values" not in shown and "tensors)" not in shown


@pytest.mark.slow
def test_without_images_the_closed_form(command, tmp_path, capsys):
    assert command("--to", "GN+TLU", images=False) == 0
    assert json.loads((tmp_path / "out.json").read_text())["achieved"] == {}
    words = ["train", "--config-file", f"{tmp_path}/out.yaml", "--dry-run"]
    assert main(words) == 0 and "start values" not in capsys.readouterr().out


@pytest.mark.slow
def test_weights_with_a_learned_epsilon_are_refused_by_a_config_without(command, tmp_path, capsys):
    assert command("--to", "GN", "--keep", "0.5", images=False) == 0
    words = ["train", "--config-file", f"{tmp_path}/out.yaml", "--dry-run"]
    assert main([*words, "MODEL.NORMDET.GN.LEARNED_EPS", "never"]) == 2
    assert "set MODEL.NORMDET.GN.LEARNED_EPS always" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--to", "GN", "--rung", "distilled"], "takes images"),
        (["--to", "GN", "--images", "nowhere"], "nowhere does not exist"),
        (["--to", "GN", "--steps", "0"], "--steps 0"),
        (["--to", "GN", "--images", ".", "--dataset", "x"], "not both"),
        (["--to", "GN", "--evaluate", "DATASETS.TEST", "()"], "DATASETS.TEST names no images"),
        (["--to", "nothing"], "did you mean"),
    ],
)
def test_bad_words_are_refused_and_nothing_written(words, sentence, command, tmp_path, capsys):
    assert command(*words, images=False) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_suffix_is_refused(command, tmp_path, capsys):
    assert command("--to", "GN", "--out", f"{tmp_path}/out.bin") == 2
    assert "written as .pth" in capsys.readouterr().err
