"""What is wrong with the data: named as it is met, and refused or counted."""

from collections.abc import Callable

from normdet.errors import NormdetError


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
        if sentence in self._told:  # what is walked through for images and for labels
            return
        self._told.add(sentence)
        self.count += 1
        self._show(f"fault: {sentence}")
