"""Names of files and folders become numbers in all that is printed."""

import pytest

from normdet.files.anonymous import Numbers, hiding

NAME = "Zaphod_Beeblebrox"


def test_a_traceback_is_hidden_too(tmp_path, capfd):
    (tmp_path / f"{NAME}.png").touch()
    with pytest.raises(SystemExit), hiding(Numbers([tmp_path], tmp_path / "key.csv")):
        raise RuntimeError(f"{tmp_path}/{NAME}.png and {NAME}")
    printed = capfd.readouterr().err
    assert "Traceback" in printed and "RuntimeError: file " in printed and NAME not in printed


def test_words_within_words_stay(tmp_path):
    for name in ("cell.png", "images", "1"):
        (tmp_path / name).touch()
    hide = Numbers([tmp_path], tmp_path / "key.csv").hide
    assert hide("1 images: cells, cell.png") == "1 images: cells, file 3"


def test_a_name_is_known_across_a_line_break(tmp_path):
    (tmp_path / "Zaphod  B").mkdir()
    hide = Numbers([tmp_path / "Zaphod  B"], tmp_path / "key.csv").hide
    for text in ("in Zaphod  B", "in Zaphod\n      B", "in Zaphod B"):
        assert hide(text) == "in folder 1", text
    assert hide("in ZaphodB") == "in ZaphodB"
