"""Roboflow's table of what the values of its mask images mean: `Pixel Value, Class`."""

import csv
import io
from dataclasses import replace
from pathlib import Path

from normdet.data.records import check_class_name
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Files, text_of
from normdet.medical.prepare.masks import Labels

_NAME = "_classes.csv"
# The largest table that is read: 256 values with their names.
_LARGEST = 1 << 16


def with_names(rule: Labels, root: Path) -> tuple[Labels, list[str]]:
    """The rule with the classes of a source's table, where the user names none, and notes.

    Raises:
        NormdetError: tables that contradict each other, or names that are none.
    """
    if rule.classes or rule.instances == "values":
        return rule, []
    tables = [path for path in Files(root).ending(_NAME) if path.name == _NAME]
    found = {path: names for path in tables if (names := _names(path))}
    if not found:
        return rule, []
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise NormdetError(f"{first} and {other} name other classes: give them by --classes")
    note = f"{first}: the values of the masks are classes, and connected pieces of one its objects"
    return replace(rule, classes=found[first], instances="components"), [note]


def _names(path: Path) -> tuple[str, ...]:
    """The names of values 1, 2, ...; none if the file is another table."""
    rows = list(csv.reader(io.StringIO(text_of(path, _LARGEST)), skipinitialspace=True))
    if not rows or [cell.strip().lower() for cell in rows[0]] != ["pixel value", "class"]:
        return ()
    try:
        names = {int(value): name.strip() for value, name in filter(None, rows[1:])}
    except ValueError as error:
        raise NormdetError(f"{path} has a row that is no value and its class") from error
    names.pop(0, None)  # the background
    if not names or sorted(names) != list(range(1, len(names) + 1)):
        raise NormdetError(f"{path} does not name the values 1, 2, ... of the masks")
    for name in names.values():
        check_class_name(name, path)
    return tuple(names[value] for value in sorted(names))
