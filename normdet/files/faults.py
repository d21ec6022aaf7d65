"""Faults in the data: each is named when it is found, and refused or counted."""

import errno
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from normdet.errors import NormdetError

# Is called with a sentence for each fault after which a reader can continue. It may raise.
Report = Callable[[str], None]


def stop(fault: str) -> NoReturn:
    """The `Report` that stops at the first fault."""
    raise NormdetError(fault)


def fault(sentence: str, report: Callable[[str], None] | None) -> None:
    """Call `report`, or raise where there is none.

    Raises:
        NormdetError: `sentence`.
    """
    if report is None:
        raise NormdetError(sentence)
    report(sentence)


def unreadable(path: str | Path, error: OSError) -> NormdetError:
    """The error for a file or folder that the system does not allow us to read."""
    return NormdetError(f"{path} cannot be read: {error.strerror or error}")


# torch's messages for a full disk; they have neither the system's error number nor its words.
_NOT_WRITTEN = re.compile(
    r"PytorchStreamWriter failed|file write failed|No space left|inline_container.*unexpected pos"
)


def disk_fault(error: BaseException) -> str | None:
    """A phrase on a full disk; None if something else is wrong."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return f"the disk is full{where} ({error.strerror})"
    if isinstance(error, RuntimeError) and _NOT_WRITTEN.search(str(error)):
        return f"the disk is full or fails ({str(error).splitlines()[0][:200]})"
    return None


def full_disk(error: BaseException) -> NormdetError | None:
    """The error for a full disk; None if something else is wrong."""
    text = disk_fault(error)
    if text is None:
        return None
    return NormdetError(f"{text}; what was saved before stands, and --resume goes on from it")


def tell_of_threads() -> None:
    """From now on a full disk that strikes in a thread, as TensorBoard's, is one line."""

    def hook(failed: threading.ExceptHookArgs) -> None:
        text = disk_fault(failed.exc_value) if failed.exc_value else None
        if text is None:
            threading.__excepthook__(failed)
        elif text not in told:
            told.add(text)
            print(f"normdet: warning: {text}: a thread stops writing", file=sys.stderr)

    told: set[str] = set()
    threading.excepthook = hook


def missing_extra(package: str) -> NormdetError:
    """The error for a reader whose library is not installed."""
    return NormdetError(
        f"{package} is needed to read this and is not installed: pip install normdet[medical]"
    )


class Faults:
    """A `Report` that prints each sentence once and counts them, or raises the first.

    Args:
        on_error: `"skip"` or `"stop"`.
        show: prints a line.
    """

    def __init__(self, on_error: str, show: Callable[[str], None]):
        self._stop = on_error == "stop"
        self._show = show
        self._told: set[str] = set()
        self.count = 0

    def __call__(self, sentence: str) -> None:
        """One fault.

        Raises:
            NormdetError: under `"stop"`.
        """
        if self._stop:
            raise NormdetError(f"{sentence} (--on-error skip goes on without it)")
        if sentence in self._told:  # the same file may be met as an image and as a label
            return
        self._told.add(sentence)
        self.count += 1
        self._show(f"fault: {sentence}")
