"""Where messages go: all to `log.txt`, and the few that a person reads to the console."""

import logging
import sys
from pathlib import Path

from rich.console import Console

# The loggers whose plain lines report progress.
_PROGRESS = ("normdet", "detectron2.utils.events", "detectron2.evaluation.evaluator")
_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"


def _for_people(record: logging.LogRecord) -> bool:
    progress = record.levelno >= logging.INFO and record.name.startswith(_PROGRESS)
    return progress or record.levelno >= logging.WARNING


def setup_logging(output_dir: str, rank: int = 0, console: Console | None = None) -> None:
    """Send the loggers of normdet, detectron2 and fvcore, and warnings, to file and console.

    Every record goes to `OUTPUT_DIR/log.txt` (`log.txt.rankN` for the others than rank 0). Rank 0
    shows progress and warnings too. Safe to call again: the last call holds.

    Args:
        output_dir: folder of the log file, made if missing; "" for no file.
        rank: this process's place among all.
        console: a terminal with a progress bar. Lines appear above it; lines that repeat what the
            bar shows do not.
    """
    handlers: list[logging.Handler] = []
    if rank == 0:
        shown = _ConsoleHandler(console) if console else logging.StreamHandler(sys.stdout)
        shown.addFilter(_for_people)
        if console:
            shown.addFilter(lambda record: record.name != "detectron2.utils.events")
        shown.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%m/%d %H:%M:%S"))
        handlers.append(shown)
    if output_dir:
        path = Path(output_dir, "log.txt" if rank == 0 else f"log.txt.rank{rank}")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter(_FORMAT))
        handlers.append(file)
    logging.captureWarnings(True)
    for name in ("normdet", "detectron2", "fvcore", "py.warnings"):
        logger = logging.getLogger(name)
        for old in logger.handlers[:]:
            logger.removeHandler(old)
            old.close()
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        for handler in handlers:
            logger.addHandler(handler)


class _ConsoleHandler(logging.Handler):
    """Prints records through rich, which keeps a progress bar below them."""

    def __init__(self, console: Console):
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class LoggedOutput:
    """A text stream whose lines become records of a logger: for code that prints."""

    def __init__(self, logger: logging.Logger):
        self._logger = logger

    def write(self, text: str) -> int:
        """Log the non-empty lines of `text`."""
        for line in filter(str.strip, text.splitlines()):
            self._logger.info(line)
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""
