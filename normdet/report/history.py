"""The curves of a run, as detectron2's JSON writer left them."""

import json
from pathlib import Path

from normdet.errors import NormdetError


def read_history(file: Path) -> list[dict]:
    """The lines of a run's metrics file; where a resumed run went over a step again, the last.

    Raises:
        NormdetError: the file cannot be read, or is not what the writer leaves.
    """
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        # detectron2 counts the evaluation after the last step as one step later.
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
