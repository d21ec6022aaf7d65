"""Names of files and folders become numbers in any text."""

from normdet.files.anonymous import Numbers


def test_a_name_is_known_across_a_line_break(tmp_path):
    (tmp_path / "Zaphod  B").mkdir()
    hide = Numbers([tmp_path / "Zaphod  B"], tmp_path / "key.csv").hide
    for text in ("in Zaphod  B", "in Zaphod\n      B", "in Zaphod B"):
        assert hide(text) == "in folder 1", text
    assert hide("in ZaphodB") == "in ZaphodB"
