"""Find the image files that annotations name, however labelling tools spell the names.

Tools write paths of the machine that labelled (`images\\1\\x.png`, `..\\..\\media\\4\\x.png`,
`/data/upload/x.png`), put a prefix before a name, or leave the ending out; archives of macOS hold
names in another Unicode form. Files are found inside the searched folders only.
"""

import contextlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from normdet.data.image_file import SUFFIXES
from normdet.data.records import confined
from normdet.errors import NormdetError
from normdet.files.anonymous import known_name
from normdet.files.words import first_of

# Label Studio puts eight digits before the name of an uploaded file.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")


class Finder:
    """Finds images by the names that annotations give them.

    Args:
        roots: folders to search, the likeliest first; all below them is searched where a name
            does not lead to a file as it stands.
        beside_source: take names from the annotation file's own folder first; for sources that lie
            inside the roots.

    Attributes:
        rules: how often each rule found a file that its name alone did not lead to.
    """

    def __init__(self, roots: Sequence[Path], *, beside_source: bool = False):
        self._beside = beside_source
        self._roots = list(dict.fromkeys(Path(root) for root in roots))
        self._by_stem: dict[str, list[Path]] | None = None
        self._taken: dict[str, str] = {}
        self._listings: dict[Path, dict[str, bool]] = {}
        self.rules: Counter[str] = Counter()

    def __call__(self, name: str, source: Path) -> Path | None:
        """The file that `name` means, or None.

        Args:
            name: as written in the annotations.
            source: of the name, for messages.

        Raises:
            NormdetError: a name that leads out of every root and belongs to no file inside, that
                is none a file can have, or that several files have.
        """
        known_name(name)
        refused: NormdetError | None = None
        beside = [source.parent] if self._beside else []
        for root in [*beside, *self._roots]:
            try:
                path = self._as_named(root, name, source)
            except NormdetError as error:
                refused = refused or error
                continue
            if path is not None:
                self._taken.setdefault(str(path), name)
                return path
        found = self._search(name, source)
        if found is None and refused is not None:
            raise refused
        if found is None:
            return None
        path, rule = found
        self.rules[rule] += str(path) not in self._taken
        owner = self._taken.setdefault(str(path), name)
        if owner != name:
            raise NormdetError(f"{source} names {name!r} and {owner!r}, which are both {path}")
        return path

    def _as_named(self, root: Path, name: str, source: Path) -> Path | None:
        """`root / name` where it is a file inside; folders are listed once, not asked by file."""
        folder, last = os.path.split(name)
        plain = not os.path.isabs(name) and ".." not in folder.split("/") and "\0" not in name
        if plain and self._listing(root / folder, root).get(last):
            return root / name
        path = confined(root, name, source)
        # Not the path's own method: that raises on a name that is too long.
        return path if os.path.isfile(path) else None

    def _listing(self, folder: Path, root: Path) -> dict[str, bool]:
        """The names in a folder inside `root`, and whether each is a file and no link."""
        if folder not in self._listings:
            listing: dict[str, bool] = {}
            with contextlib.suppress(OSError, ValueError):
                real_root, real = os.path.realpath(root), os.path.realpath(folder)
                if os.path.commonpath([real_root, real]) == real_root:
                    with os.scandir(folder) as entries:
                        listing = {e.name: e.is_file(follow_symlinks=False) for e in entries}
            self._listings[folder] = listing
        return self._listings[folder]

    def knows(self, name: str, source: Path) -> bool:
        """Whether a file would be found, and one only."""
        try:
            return self(name, source) is not None
        except NormdetError:
            return False

    def said(self, source: Path) -> list[str]:
        """A sentence on each rule that found files."""
        return [
            f"{source}: {count} image{'s' if count > 1 else ''} found {rule}"
            for rule, count in self.rules.items()
            if count
        ]

    def _search(self, name: str, source: Path) -> tuple[Path, str] | None:
        wanted = _parts(name)
        if not wanted:
            return None
        plain, bare = wanted[-1], _UPLOAD.sub("", wanted[-1])
        for last, rule in ((plain, ""), (bare, "without the prefix of an upload")):
            candidates = self._index().get(_stem_key(last), [])
            same = [path for path in candidates if _key(path.name) == _key(last)]
            if not same and candidates and _suffix(last) not in SUFFIXES:
                same, rule = candidates, rule or "with the ending that the name lacks"
            elif not same and candidates:
                same, rule = candidates, rule or "with another ending"
            if same:
                return self._best([*wanted[:-1], last], same, name, source, rule)
        return None

    def _best(
        self, wanted: list[str], candidates: list[Path], name: str, source: Path, rule: str
    ) -> tuple[Path, str]:
        """The one of the files of a name whose folders are most like those named."""
        by_likeness: dict[tuple, list[Path]] = {}
        for path in candidates:
            parts = [part for part in path.parts if part not in ("/", "")]
            tail = 0
            for mine, theirs in zip(reversed(wanted[:-1]), reversed(parts[:-1]), strict=False):
                if _key(mine) != _key(theirs):
                    break
                tail += 1
            near = len(os.path.commonpath([path, source.parent])) if self._beside else 0
            by_likeness.setdefault((tail, near, path.name == wanted[-1]), []).append(path)
        (tail, _, exact), best = max(by_likeness.items())
        if len(best) > 1:
            raise NormdetError(
                f"{source} names {name!r}, and several files are called so: "
                f"{first_of(map(str, best))}"
            )
        path = best[0]
        if rule:
            return path, rule
        if tail < len(wanted) - 1:
            return path, "by their file names" if not tail else "by the ends of their paths"
        if "\\" in name:
            return path, "with slashes in place of backslashes"
        nfc = unicodedata.normalize("NFC", name)
        if not exact and unicodedata.normalize("NFC", path.name) == PurePosixPath(nfc).name:
            return path, "in another Unicode form"
        return path, "in other letters" if not exact else "below the folder"

    def _index(self) -> dict[str, list[Path]]:
        """Every image below the roots by its name without ending."""
        if self._by_stem is None:
            self._by_stem = {}
            seen: set[str] = set()
            for root in self._roots:
                real_root = os.path.realpath(root)
                for place, folders, files in os.walk(root):
                    folders[:] = sorted(name for name in folders if not name.startswith("."))
                    for file in sorted(files):
                        real = os.path.realpath(os.path.join(place, file))
                        inside = os.path.commonpath([real_root, real]) == real_root
                        image = _suffix(file) in SUFFIXES and not file.startswith(".")
                        if image and inside and real not in seen:
                            seen.add(real)
                            path = Path(place, file)
                            self._by_stem.setdefault(_stem_key(file), []).append(path)
        return self._by_stem


def _parts(name: str) -> list[str]:
    """A path's parts, whatever system or address it is written for."""
    if "?d=" in name:  # Label Studio's files on its own disk
        name = name.rpartition("?d=")[2]
    if "%" in name:
        name = unquote(name)
    name = re.sub(r"^[a-z]+://[^/]*/|[?#].*$", "", name) if "://" in name else name
    parts = name.replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".", "..") and not part.endswith(":")]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _stem_key(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in SUFFIXES:
        name = stem
    return _key(name.removesuffix(".ome").removesuffix(".OME"))
