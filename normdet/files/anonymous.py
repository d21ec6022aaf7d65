"""Numbers in place of the names of files and folders, which can be those of patients.

What a command prints and logs passes through :meth:`Numbers.hide`; images get names made of their
numbers. The key is a file of its own, which only its owner may read.
"""

import contextlib
import csv
import io
import logging
import os
import re
import sys
import traceback
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from normdet.errors import NormdetError
from normdet.files.atomic import atomic_file

# Names of folders that identify nobody. Shorter names than this are not hidden.
_USUAL = frozenset(
    """annotations data dataset image images imagesets img imgs instances jpegimages label labels
    main mask masks obj_train_data test train training tmp val valid validation""".split()
)
_SHORTEST = 3
_WORD = re.compile(r"\w+")
_FILE = re.compile(
    r"""(?:"[^"\n]*|'[^'\n]*|[^\s"'(),;]*)\.
    (?:png|jpe?g|tiff?|bmp|webp|dcm|ima|nii(?:\.gz)?|xml|(?:geo|nd)?json|jsonl|manifest|csv|txt
    |npy|h5|hdf5|svs|ndpi|roi|mat|zip)\b["']?""",
    re.I | re.X,
)


class Numbers:
    """A number for each file and folder below some roots.

    Args:
        roots: files and folders whose names are hidden, with all names below them.
        key: the CSV file of numbers and names; those of an earlier run stay.
        own: folders whose files keep their names: what the command itself writes.
        alone: more paths whose names are hidden, without the names below them.

    Raises:
        NormdetError: the key cannot be written.
    """

    def __init__(
        self,
        roots: Iterable[Path],
        key: Path,
        own: Iterable[Path] = (),
        alone: Iterable[Path] = (),
    ):
        self.key = key
        self._own = tuple(str(path) for path in own)
        self._numbers: dict[str, int] = {}
        self._shown: dict[str, dict[str, str]] = defaultdict(dict)
        self._read_key()
        for root in roots:
            for path in (root, *_below(root)):
                self.number(path)
                # Relative paths start from the current folder.
                self._learn(os.path.relpath(path), path.name, self._token(path))
        for path in alone:
            self.number(path)
        self._write_key()

    def number(self, path: Path) -> int:
        """Of a file or folder; the same for every way to write its path."""
        place = os.path.abspath(path)
        if place not in self._numbers:
            self._numbers[place] = len(self._numbers) + 1
        token = self._token(path)
        for form in {str(path), place, os.path.realpath(place)}:
            self._learn(form, os.path.basename(place), token)
        for name in {os.path.basename(place), *_stems(os.path.basename(place))}:
            if len(name) >= _SHORTEST and name.lower() not in _USUAL:
                self._learn(name, name, token)
        return self._numbers[place]

    def image_name(self, path: Path) -> str:
        """The name that an image goes by."""
        return f"image{self.number(path):06d}"

    def hide(self, text: str) -> str:
        """The text with numbers in place of all names that are known, and of all files."""
        words = set(_WORD.findall(text))
        found = {}
        for word in words & self._shown.keys():
            found |= self._shown[word]
        for name in sorted(found, key=len, reverse=True):
            # A long line is broken where a name has a space.
            pattern = r"\s+".join(map(re.escape, re.split(r"\s+", name)))
            # Whole words alone: `in` must not be found in `image`.
            text = re.sub(rf"(?<!\w){pattern}(?!\w)", lambda m, t=found[name]: t, text)
        return _FILE.sub(self._hide_file, text)

    def learn(self, text: str) -> None:
        """Hide a name that the content of a file gives: of an image, with its folders, or an id."""
        for part in {text, *re.split(r"[/\\]", text)}:
            for name in {part, *_stems(part)}:
                if len(name) >= _SHORTEST and name.lower() not in _USUAL and not name.isdecimal():
                    self._learn(name, name, "a file")

    def _hide_file(self, match: re.Match) -> str:
        """Hide a file that is missing, such as one that annotations name; keep our own files."""
        text = match[0]
        plain = text.strip("\"'")
        own = plain.startswith(self._own) if self._own else False
        return text if own or re.fullmatch(r"image\d{6}(_\d+)?\.\w+", plain) else "a file"

    def _learn(self, form: str, name: str, token: str) -> None:
        for text in {form, unicodedata.normalize("NFC", form), unicodedata.normalize("NFD", form)}:
            words = _WORD.findall(os.path.basename(text) or name) or _WORD.findall(text)
            for word in words:
                self._shown[word].setdefault(text, token)

    def _token(self, path: Path) -> str:
        number = self._numbers[os.path.abspath(path)]
        return f"folder {number}" if path.is_dir() else f"file {number}"

    def _read_key(self) -> None:
        if not self.key.is_file():
            return
        try:
            rows = list(csv.DictReader(io.StringIO(self.key.read_text(), newline="")))
            self._numbers = {row["path"]: int(row["number"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NormdetError(
                f"{self.key} is not a key of names that can be read: move it away"
            ) from error

    def _write_key(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["number", "path"])
        writer.writerows((number, path) for path, number in self._numbers.items())
        try:
            self.key.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.key) as file:
                os.chmod(file.name, 0o600)
                file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise NormdetError(f"{self.key} cannot be written: {error.strerror}") from error


# Those of the block of `hiding` that runs.
_active: Numbers | None = None


def is_hiding() -> bool:
    """Whether names are hidden now."""
    return _active is not None


def known_name(text: str) -> None:
    """Hide a name that annotations give, from now on, if names are hidden."""
    if _active is not None:
        _active.learn(text)


def key_beside(out: Path) -> Path:
    """The path of the key to a folder of results: outside it, because the folder is passed on."""
    return out.parent / f"{out.name}-names.csv"


@contextlib.contextmanager
def hiding(numbers: Numbers | None) -> Iterator[None]:
    """Inside, everything that is printed, logged or raised names files by their numbers.

    Raises:
        NormdetError: as the block raises it, with names hidden.
    """
    if numbers is None:
        yield
        return
    global _active
    factory, before = logging.getLogRecordFactory(), _active

    def record(*args: Any, **named: Any) -> logging.LogRecord:
        made = factory(*args, **named)
        made.msg, made.args = numbers.hide(made.getMessage()), ()
        return made

    out, err = _Hidden(sys.stdout, numbers), _Hidden(sys.stderr, numbers)
    logging.setLogRecordFactory(record)
    _active = numbers
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    except NormdetError as error:
        error.args = (numbers.hide(str(error)),)
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror) from None  # without the file's name
    except KeyboardInterrupt as interrupt:
        interrupt.args = tuple(numbers.hide(str(one)) for one in interrupt.args)
        raise
    except Exception:
        # A bug: print its traceback, without the names in its message.
        sys.stderr.write(numbers.hide(traceback.format_exc()))
        raise SystemExit(1) from None
    finally:
        _active = before
        logging.setLogRecordFactory(factory)


class _Hidden(io.TextIOBase):
    """A stream whose text is hidden before it is written."""

    def __init__(self, stream: Any, numbers: Numbers):
        self._stream, self._numbers = stream, numbers

    def write(self, text: str) -> int:
        """Write the text without names."""
        self._stream.write(self._numbers.hide(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return self._stream.encoding


def _below(root: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(place, name)


def _stems(name: str) -> Iterator[str]:
    """The name without its last ending, its last two, and so on."""
    while "." in name.strip("."):
        name = name.rpartition(".")[0]
        yield name
