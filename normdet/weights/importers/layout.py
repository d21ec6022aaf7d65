"""The result of an importer, and the rules by which names are rewritten."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from normdet.weights.facts import Facts

CLASSIFIER = "a classifier, which a detector has no use for"


@dataclass
class Imported:
    """A weights file's tensors under detectron2's names.

    Attributes:
        model: tensors by detectron2's names.
        facts: what is known about them.
        layout: the library whose names the file uses, in words.
        left_out: the file's tensors that have no counterpart, by the file's names, and why.
        notes: what detectron2 computes slightly differently, a clause each.
        partial: whether the names lack a detector's prefix (`backbone.bottom_up.`).
    """

    model: dict[str, Tensor]
    facts: Facts = field(default_factory=Facts)
    layout: str = "detectron2"
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    partial: bool = False


@dataclass(frozen=True)
class Layout:
    """A library's way to name tensors.

    Attributes:
        recognises: whether a file's tensors have this layout.
        convert: from tensors by name, the whole checkpoint, and the file's name for messages, to
            an :class:`Imported`.
    """

    recognises: Callable[[Mapping[str, Tensor]], bool]
    convert: Callable[[Mapping[str, Tensor], Mapping[str, Any], str], Imported]


def nth(match: re.Match, more: int = 1) -> str:
    """The end of a numbered layer's name: `3.weight`, or `3.norm.bias`.

    Args:
        match: the number as group `n`; the tensor as `conv` or, if it is a norm's, as `norm`.
        more: added to the number.
    """
    return f"{int(match['n']) + more}.{match['conv'] or 'norm.' + match['norm']}"


Rules = Iterable[tuple[str, str | Callable[[re.Match], str]]]


def rename(name: str, rules: Rules) -> str | None:
    """The replacement by the first rule that matches the whole name; None if none does."""
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    return None
