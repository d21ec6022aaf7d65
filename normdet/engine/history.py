"""The curves of a run, read from the file of detectron2's JSON writer."""

import json
from pathlib import Path

from normdet.errors import NormdetError


def read_history(file: Path) -> list[dict]:
    """The lines of a run's metrics file. If a resumed run repeated a step, its last line counts.

    A line that a kill cut short is left out, and so is what a resumed run appended to it.

    Raises:
        NormdetError: the file cannot be read, or is no metrics file.
    """
    try:
        parsed = map(_parsed, file.read_text().splitlines())
        lines = [line for line in parsed if line is not None]
        # detectron2 gives the evaluation after the last step the number of one step later.
        last = max((line["iteration"] for line in lines if "total_loss" in line), default=None)
        entries: dict[int, dict] = {}
        for line in lines:
            iteration = line["iteration"] if last is None else min(line["iteration"], last)
            entries.setdefault(iteration, {}).update(line, iteration=iteration)
        return [entries[iteration] for iteration in sorted(entries)]
    except OSError as error:
        raise NormdetError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NormdetError(f"{file} is not a metrics file of a run: {error!r}") from error


def steps_logged(file: Path) -> int:
    """The steps that a run has logged in its metrics file so far; 0 if that cannot be told.

    It reads the file's end alone, so that a display can ask every second.
    """
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - 4096))
            lines = opened.read().splitlines()
        return int(json.loads(lines[-1])["iteration"]) + 1 if lines else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _parsed(text: str) -> dict | None:
    try:
        return json.loads(text)
    except ValueError:
        if text.startswith("{"):
            return None
        raise
