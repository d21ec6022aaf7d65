"""Image files are found by the names that annotation tools give them, and never outside."""

import unicodedata

import pytest

from normdet.data.names import Finder
from normdet.errors import NormdetError

NAMES = {
    "images/a.png": None,
    "images\\a.png": "backslashes",
    "images\\1\\a.png": "by their file names",
    "..\\..\\media\\upload\\4\\a.png": "by their file names",
    "/data/upload/7/a.png": "by their file names",
    "http://host:8080/data/upload/7/a.png": "by their file names",
    "/data/local-files/?d=images/a.png": "below the folder",
    "a.png": "below the folder",
    "A.PNG": "in other letters",
    "cb0618f0-a.png": "without the prefix",
    "a": "ending that the name lacks",
    "a.jpg": "with another ending",
    "nested/a%20b.png": "below the folder",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_found_by_a_tool_s_name_and_the_way_is_reported(tmp_path, name):
    for place in ("images/a.png", "images/nested/a b.png", "other/c.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    finder = Finder([tmp_path])
    found = finder(name, tmp_path / "x.json")
    assert found == tmp_path / ("images/nested/a b.png" if "nested" in name else "images/a.png")
    said = " ".join(finder.said(tmp_path / "x.json"))
    assert NAMES[name] in said if NAMES[name] else said == ""


def test_names_in_another_unicode_form(tmp_path):
    there = unicodedata.normalize("NFD", "é.png")
    (tmp_path / there).touch()
    finder = Finder([tmp_path])
    assert finder(unicodedata.normalize("NFC", "é.png"), tmp_path / "x.json").name == there
    assert "in another Unicode form" in finder.said(tmp_path)[0]


def test_a_name_of_several_files_is_told_by_its_folders_or_refused(tmp_path):
    for place in ("left/scans/a.png", "right/scans/a.png"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    finder = Finder([tmp_path])
    assert finder("C:\\x\\right\\scans\\a.png", tmp_path).parent.parent.name == "right"
    with pytest.raises(NormdetError, match="several files are called so"):
        finder("scans\\a.png", tmp_path)


def test_two_names_never_mean_one_file(tmp_path):
    (tmp_path / "a.png").touch()
    finder = Finder([tmp_path])
    finder("x\\a.png", tmp_path)
    with pytest.raises(NormdetError, match="which are both"):
        finder("y\\a.png", tmp_path)


def test_nothing_outside_is_found(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.png").touch()
    (tmp_path / "inside" / "link.png").symlink_to(tmp_path / "secret.png")
    finder = Finder([tmp_path / "inside"])
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(NormdetError, match="lies outside"):
            finder(name, tmp_path / "x.json")
    assert finder("secret.png", tmp_path / "x.json") is None
