"""`runs.csv`, one line a run: derived from the cells' own files, and read back for the report."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from normdet.errors import NormdetError
from normdet.files.atomic import atomic_file
from normdet.lab.compare.cell import METRICS, TASKS

AP_COLUMNS = tuple(f"{task}_{metric}" for task in TASKS for metric in METRICS)
COLUMNS = (
    "run", "dataset", "norm", "batch_size", "seed", "init", "option", "role", "status",
    *AP_COLUMNS, "lr", "lr_factor", "iterations", "images_seen", "config_hash", "commit",
    "step_s", "train_s", "wall_s", "memory_mb", "gpu_memory_mb", "versions", "machine", "date",
    "note",
)  # fmt: skip
_WHOLE = ("batch_size", "seed", "iterations", "images_seen", "memory_mb", "gpu_memory_mb")
_NUMBERS = (*AP_COLUMNS, "lr", "lr_factor", "step_s", "train_s", "wall_s")


def read_cell(file: Path) -> dict | None:
    """The row of a cell; None where it has none yet.

    Raises:
        NormdetError: for a file that is no row.
    """
    try:
        row = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise NormdetError(f"{file} cannot be read ({error}): remove it to run it again") from error
    if not isinstance(row, dict) or not {"run", "config_hash"} <= row.keys():
        raise NormdetError(f"{file} is not the row of a run: remove it to run it again")
    return row


def read_cells(folder: Path) -> list[dict]:
    """The rows of all cells below `folder`, by norm, batch size, role and seed."""
    rows = [read_cell(file) for file in sorted(folder.glob("*/run.json"))]
    order = ("norm", "batch_size", "role", "seed", "lr_factor")
    return sorted(filter(None, rows), key=lambda row: tuple(row.get(key) or 0 for key in order))


def write(rows: Iterable[Mapping], path: Path) -> None:
    """Write `runs.csv`, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _text(key, row.get(key)) for key in COLUMNS})
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def _text(key: str, value: object) -> object:
    if value is None:
        return ""
    return f"{value:.3f}" if key in AP_COLUMNS else value


def read(path: Path) -> list[dict]:
    """The rows of a `runs.csv`, numbers as numbers and None where there is nothing.

    Raises:
        NormdetError: for a file that is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise NormdetError(f"{path} has no column {', '.join(sorted(missing))}")
            return [_typed(row) for row in reader]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, NormdetError):
            raise
        raise NormdetError(f"{path} is no table of runs: {error}") from error


def _typed(row: Mapping[str, str]) -> dict:
    kinds = {key: int for key in _WHOLE} | {key: float for key in _NUMBERS}
    return {
        key: (kinds[key](value) if value else None) if key in kinds else value
        for key, value in row.items()
    }


def primary_metric(rows: Sequence[Mapping]) -> str:
    """The metric that is tested: mask AP where there are masks, or else keypoint or box AP."""
    for name in ("mask_AP", "keypoint_AP"):
        if any(row.get(name) is not None for row in rows):
            return name
    return "box_AP"
