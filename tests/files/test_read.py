"""Files of strangers are read if they are regular files of bounded size and depth."""

import os
import tracemalloc

import pytest

from normdet.errors import NormdetError
from normdet.files.read import parse_xml, read_bytes, read_text


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.xml")
    (tmp_path / "b.xml").symlink_to("/dev/zero")
    for name in ("a.xml", "b.xml"):
        with pytest.raises(NormdetError, match=f"{name} is a pipe, a socket or a device"):
            parse_xml(tmp_path / name)
    with pytest.raises(NormdetError, match="is a folder"):
        read_bytes(tmp_path, 10)
    with pytest.raises(NormdetError, match="No such file"):
        read_bytes(tmp_path / "c", 10)


def test_size_is_bounded(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("äb")
    assert read_text(file, 3) == "äb"
    with pytest.raises(NormdetError, match="is larger than"):
        read_text(file, 2)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(NormdetError, match="not text in UTF-8"):
        read_text(file, 3)
    with open(tmp_path / "a.xml", "wb") as sparse:
        sparse.truncate(100 << 20)
    with pytest.raises(NormdetError, match=r"a\.xml is larger than 32 MB: not read"):
        parse_xml(tmp_path / "a.xml")


def test_a_small_file_takes_little_memory_under_a_large_bound(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    tracemalloc.start()
    assert read_bytes(tmp_path / "a.json", 1 << 30) == b"{}"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_depth_is_bounded(tmp_path):
    file = tmp_path / "a.xml"
    file.write_text("<a>" * 64 + "</a>" * 64)
    assert parse_xml(file).tag == "a"
    for text in ("<a>" * 65 + "</a>" * 65, "<a>" * 1_000_000):
        file.write_text(text)
        with pytest.raises(NormdetError, match="nests elements deeper than 64"):
            parse_xml(file)


@pytest.mark.parametrize("text", ["", "<a>", "<a></b>", "a", "<a/><b/>", "<?xml x?><a/>"])
def test_a_file_that_is_no_xml_is_refused(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(NormdetError, match="is not XML"):
        parse_xml(tmp_path / "a.xml")


def test_the_root_is_whole(tmp_path):
    (tmp_path / "a.xml").write_text("<a><b>1</b><!-- c --><b>2</b></a>")
    assert [one.text for one in parse_xml(tmp_path / "a.xml").iter("b")] == ["1", "2"]
