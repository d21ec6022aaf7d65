"""Numbers spelled as an expression: read, never run."""

import pytest

from normdet import NormdetError
from normdet.files.numbers import read_numbers


@pytest.mark.parametrize(
    "text",
    [
        "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]",
        "[-90, 0, 1e-1, (1, 2)]",
        "[x + y for x in range(3) for y in [1, 2]]",
        "7 // 2 % 2",
    ],
)
def test_numbers_are_those_of_python(text):
    def lists(value):
        return [lists(v) for v in value] if isinstance(value, list | tuple) else value

    assert read_numbers(text) == lists(eval(text))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd').read()",
        "[x for x in ().__class__.__bases__]",
        "'text'",
        "True",
        "9**9**9**9",
        "[1] * 10**9",
        "(-8) ** 0.5",
        "[0 for a in range(999) for b in range(999)]",
        "range(10**12)",
        "1 / 0",
        "x",
        "[x for x in range(3) if x]",
        "lambda: 0",
        "(" * 500 + "1" + ")" * 500,
        "1" * 3000,
        "",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(NormdetError, match="is no list of numbers"):
        read_numbers(text)
