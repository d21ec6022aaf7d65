"""Where a data set is made before it moves to its place: what is finished there outlives a kill.

A finished stack is one file that appears whole. Before anything of it is used again, the request
and the names, sizes and times of all files of the source must be what they were.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from normdet.lock import held
from normdet.prepare.statistics import Intensities
from normdet.prepare.write import IMAGES, Written
from normdet.weights.files import atomic_file


@dataclass
class Finished:
    """All that comes of a stack besides the images it wrote.

    Attributes:
        digests: of its source files, in hex.
        written: its images.
        intensities: their values.
        empty: images without an object.
        faults: what was told of it.
    """

    digests: list[str]
    written: list[Written] = field(default_factory=list)
    intensities: Intensities = field(default_factory=Intensities)
    empty: int = 0
    faults: list[str] = field(default_factory=list)


class Workshop:
    """The folder of one preparation.

    Args:
        folder: it, there already.
        request: a text that differs whenever the result may.

    Attributes:
        data: where the data set is made.
    """

    def __init__(self, folder: Path, request: str):
        self.folder, self.data, self._stacks = folder, folder / "data", folder / "stacks"
        note = folder / "request"
        if not note.exists() or note.read_text() != request:
            note.unlink(missing_ok=True)  # first: a kill from here on leaves nothing to go on with
            for made in (self.data, self._stacks):
                shutil.rmtree(made, ignore_errors=True)
            note.write_text(request)
        (self.data / IMAGES).mkdir(parents=True, exist_ok=True)
        self._stacks.mkdir(exist_ok=True)

    def __len__(self) -> int:
        """The stacks that are finished."""
        return len(list(self._stacks.glob("*.npz")))

    def finished(self, number: int) -> Finished | None:
        """What came of the stack `number`, if it is finished."""
        try:
            with np.load(self._file(number), allow_pickle=False) as arrays:
                content = json.loads(str(arrays["content"]))
                whole, inside = (
                    [arrays[f"{name}{index}"] for index in range(content.pop(name))]
                    for name in ("whole", "inside")
                )
        except FileNotFoundError:
            return None
        written = [_written(item) for item in content.pop("written")]
        return Finished(written=written, intensities=Intensities(whole, inside), **content)

    def keep(self, number: int, finished: Finished) -> None:
        """Remember that the stack `number` is finished."""
        values = finished.intensities
        content = {
            "digests": finished.digests,
            "written": [{**asdict(w), "sums": w.sums.tolist()} for w in finished.written],
            "empty": finished.empty,
            "faults": finished.faults,
            "whole": len(values.whole),
            "inside": len(values.inside),
        }
        arrays = {f"whole{index}": part for index, part in enumerate(values.whole)}
        arrays |= {f"inside{index}": part for index, part in enumerate(values.inside)}
        with atomic_file(self._file(number)) as file:
            np.savez(file, content=np.array(json.dumps(content)), **arrays)

    def _file(self, number: int) -> Path:
        return self._stacks / f"{number:06}.npz"


def _written(item: dict) -> Written:
    spacing = item["spacing"] and tuple(item["spacing"])
    return Written(**item | {"spacing": spacing, "sums": np.array(item["sums"])})


@contextlib.contextmanager
def workshop(out: Path, request: str) -> Iterator[Workshop]:
    """The workshop of the folder `out`, beside it; it goes when the work is done or has failed.

    What stops the process, Ctrl-C or a kill, leaves it for the same request to go on with.

    Raises:
        NormdetError: another process prepares `out`.
        OSError: where it cannot be made.
    """
    folder = place_of(out)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / "lock", f"{out} is being prepared by another process"):
        try:
            yield Workshop(folder, request)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def place_of(out: Path) -> Path:
    """The workshop's own folder."""
    return out.with_name(f".{out.name}.part")


def listing(roots: Sequence[Path], leave_out: Sequence[Path]) -> str:
    """A digest of the names, sizes and times of the files below `roots`.

    Args:
        roots: files or folders.
        leave_out: folders that are not looked into.
    """
    digest = hashlib.sha256()
    for root in roots:
        for path in _files(root, {os.path.realpath(path) for path in leave_out}):
            status = os.stat(path) if os.path.exists(path) else None
            known = status and (status.st_size, status.st_mtime_ns)
            digest.update(json.dumps([path, known]).encode())
    return digest.hexdigest()


def _files(root: Path, leave_out: set[str]) -> Iterator[str]:
    if root.is_file():
        yield str(root)
    for folder, folders, files in os.walk(root):
        paths = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
        folders[:] = sorted(name for name in folders if paths[name] not in leave_out)
        yield from (os.path.join(folder, name) for name in sorted(files))
