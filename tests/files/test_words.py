"""Lists in sentences."""

from normdet.files.words import first_of, listed


def test_a_long_list_is_cut_and_counted():
    assert first_of([]) == "" and first_of(["a", 2]) == "a, 2"
    assert first_of("abc") == "a, b, c" and first_of("abcde") == "a, b, c and 2 more"


def test_a_whole_list_ends_in_and_or_or():
    assert listed([]) == "" and listed(["a"]) == "a"
    assert listed("abc") == "a, b and c" and listed(["a", 1], "or") == "a or 1"
