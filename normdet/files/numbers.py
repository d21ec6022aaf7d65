"""Lists of numbers spelled as a Python expression, read without running any code.

detectron2's zoo spells anchor sizes as `[[x, x * 2**(1.0/3)] for x in [32, 64]]`.
"""

import ast
import math
import operator
from typing import Any

from normdet.errors import NormdetError

_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
# No list of sizes or angles is nearly as long or as large.
_LONGEST_TEXT = 2000
_MOST_STEPS = 10_000
_LARGEST = 1e15


def read_numbers(text: str) -> Any:
    """A number, or nested lists of numbers, from an expression.

    Takes numbers, `+ - * / // % **`, lists, tuples, `range` and comprehensions over these; nothing
    else is looked at, and nothing is run.

    Raises:
        NormdetError: anything else, or numbers without end.
    """
    try:
        if len(text) > _LONGEST_TEXT:
            raise ValueError("it is too long")
        value = _Reader().read(ast.parse(text.strip(), mode="eval").body, {})
    except (ArithmeticError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise NormdetError(f"{shown!r} is no list of numbers: {error}") from None
    return value


class _Reader:
    def __init__(self):
        self._steps = 0

    def read(self, node: ast.AST, names: dict[str, Any]) -> Any:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise ValueError("it has too many steps")
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return _bounded(value)
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self.read(item, names) for item in items]
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATIONS:
                return _OPERATIONS[type(op)](_number(self.read(operand, names)))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                return self._binary(op, self.read(left, names), self.read(right, names))
            case ast.Call(func=ast.Name(id="range"), args=args, keywords=[]):
                return self._range([self.read(arg, names) for arg in args])
            case ast.ListComp(elt=element, generators=generators):
                return list(self._each(element, generators, names))
        raise ValueError(f"it has {type(node).__name__}, which numbers need not")

    @staticmethod
    def _binary(op: ast.operator, left: Any, right: Any) -> float:
        left, right = _number(left), _number(right)
        if isinstance(op, ast.Pow) and (abs(left) > 1e6 or abs(right) > 64):
            raise ValueError("it has a power out of bounds")
        return _bounded(_OPERATIONS[type(op)](left, right))

    @staticmethod
    def _range(limits: list[Any]) -> list[int]:
        numbers = range(*limits)
        if len(numbers) > _MOST_STEPS:
            raise ValueError("it has a range out of bounds")
        return list(numbers)

    def _each(self, element: ast.AST, generators: list[ast.comprehension], names: dict[str, Any]):
        (generator, *others) = generators
        if generator.ifs or generator.is_async or not isinstance(generator.target, ast.Name):
            raise ValueError("it has a comprehension of another kind")
        values = self.read(generator.iter, names)
        if not isinstance(values, list):
            raise ValueError("it goes through something that is no list")
        for value in values:
            bound = {**names, generator.target.id: value}
            if others:
                yield from self._each(element, others, bound)
            else:
                yield self.read(element, bound)


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise ValueError("it computes with something that is no number")
    return value


def _bounded(value: Any) -> float:
    if isinstance(value, complex) or not math.isfinite(value) or abs(value) > _LARGEST:
        raise ValueError("it has a number out of bounds")
    return value
