"""The finished work of a stopped run, so that the same command does only the rest."""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normdet.errors import NormdetError
from normdet.files.lock import hold
from normdet.files.stamp import stamp_of
from normdet.medical.prepare.stack import Stack
from normdet.medical.prepare.statistics import Intensities
from normdet.medical.prepare.write import IMAGES, Collected, Written
from normdet.medical.readers import dicom

# Names in the folder where a data set is made: the data set, and a note that it is complete.
DATA, FINISHED = "data", "finished"


class Journal:
    """One line for each finished stack: a hash of all that its images depend on, and its images.

    No line identifies a patient in any form. Patients are read again from the source's headers.

    Args:
        workshop: the folder in which a data set is made.

    Attributes:
        folder: the data set, with the images that the lines name and others.

    Raises:
        NormdetError: another command is using the folder.
    """

    def __init__(self, workshop: Path):
        self.folder = workshop / DATA
        # In append mode lines go to the end, whatever was read before.
        self._file = open(workshop / "journal", "a+b")
        try:
            self._lock(workshop)
            (self.folder / IMAGES).mkdir(parents=True, exist_ok=True)
        except BaseException:
            self._file.close()
            raise
        self._places: dict[str, int] = {}
        place = 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):  # the run was killed while it wrote this
                break
            self._places[line.partition(b" ")[0].decode()] = place
            place += len(line)
        self._file.truncate(place)

    def _lock(self, workshop: Path) -> None:
        held = hold(self._file)
        # Another run may have ended just now and deleted the folder.
        with contextlib.suppress(FileNotFoundError):
            here = os.stat(self._file.name)
            if held and os.path.samestat(os.fstat(self._file.fileno()), here):
                return
        raise NormdetError(f"another `normdet prepare` is at work in {workshop}: wait for it")

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __bool__(self) -> bool:
        """Whether any stack is done."""
        return self._file.seek(0, os.SEEK_END) > 0

    def get(self, key: str, stack: Stack) -> Collected | None:
        """The stack's images; None if it is not done or its images have changed."""
        if key not in self._places:
            return None
        self._file.seek(self._places[key])
        content = json.loads(self._file.readline().partition(b" ")[2])
        if any(self._size(image["file_name"]) != image["bytes"] for image in content["images"]):
            return None
        return _unpacked(content, stack)

    def add(self, key: str, stack: Stack, one: Collected) -> None:
        """Note that a stack is done; its images are written."""
        content = _packed(one, stack)
        for image in content["images"]:
            image["bytes"] = self._size(image["file_name"])
        self._file.write(f"{key} {json.dumps(content)}\n".encode())
        self._file.flush()

    def finish(self, command: str) -> None:
        """Note that the data set is complete, before it is moved to its place."""
        (self.folder.parent / FINISHED).write_text(command)

    def close(self) -> None:
        """Unlock the folder."""
        self._file.close()

    def _size(self, file_name: str) -> int | None:
        path = self.folder / IMAGES / file_name
        return path.stat().st_size if path.is_file() else None


@contextlib.contextmanager
def journal_beside(out: Path) -> Iterator[Journal]:
    """The journal of the run that makes `out`, in a hidden folder named after `out`.

    The folder is removed at the end. It stays if the block fails after finishing some stacks.

    Raises:
        NormdetError: another run makes `out`.
    """
    workshop = _workshop(out)
    workshop.mkdir(mode=0o700, parents=True, exist_ok=True)
    journal = Journal(workshop)
    try:
        yield journal
    except BaseException:
        if journal:
            print(f"{workshop} has what is done: the same command goes on with it", file=sys.stderr)
        else:
            shutil.rmtree(workshop, ignore_errors=True)
        raise
    else:
        shutil.rmtree(workshop, ignore_errors=True)
    finally:
        journal.close()


def was_finished(out: Path, command: str) -> bool:
    """Whether a run of the same command was killed after its result was in place; if so, clean up.

    Args:
        out: the path of the result.
        command: as given to :meth:`Journal.finish`.
    """
    workshop = _workshop(out)
    note = workshop / FINISHED
    moved = out.is_dir() and not (workshop / DATA).exists()
    if not (moved and note.is_file() and note.read_text() == command):
        return False
    shutil.rmtree(workshop, ignore_errors=True)
    return True


def _workshop(out: Path) -> Path:
    return out.parent / f".{out.name}-unfinished"


def key_of(stack: Stack, settings: Mapping[str, Any]) -> str:
    """A hash of the files of a stack, its annotations and the settings.

    Raises:
        NormdetError: a file is gone.
    """
    parts = [json.dumps(settings, sort_keys=True), stack.source.kind, stack.source.name]
    parts += [stamp_of(stack.source.paths), stamp_of(stack.labels), stack.given, stack.reading]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _packed(one: Collected, stack: Stack) -> dict[str, Any]:
    return {
        "images": [_packed_image(item, stack) for item in one.written],
        "whole": [_text(values) for values in one.intensities.whole],
        "inside": [_text(values) for values in one.intensities.inside],
        "digest": one.digest,
        "empty": one.empty,
        "faults": one.faults,
    }


def _packed_image(item: Written, stack: Stack) -> dict[str, Any]:
    return {
        "file_name": item.file_name,
        "height": item.height,
        "width": item.width,
        "objects": item.objects,
        "ignore": item.ignore,
        "spacing": item.spacing,
        "sums": item.sums.tolist(),
        # Name the file that names the patient, not the patient.
        "named_by": None if item.named_by is None else stack.source.paths.index(item.named_by),
    }


def _unpacked(content: Mapping[str, Any], stack: Stack) -> Collected:
    patients: dict[int, str] = {}
    for number in {image["named_by"] for image in content["images"]} - {None}:
        patients[number] = dicom.read_patient(stack.source.paths[number])
    return Collected(
        [_unpacked_image(image, stack, patients) for image in content["images"]],
        Intensities(*(list(map(_values, content[name])) for name in ("whole", "inside"))),
        content["digest"],
        content["empty"],
        content["faults"],
    )


def _unpacked_image(image: Mapping[str, Any], stack: Stack, patients: Mapping[int, str]) -> Written:
    number = image["named_by"]
    group, is_patient = stack.group_of(None if number is None else patients[number])
    return Written(
        image["file_name"],
        image["height"],
        image["width"],
        image["objects"],
        group,
        stack.split,
        is_patient,
        None if image["spacing"] is None else tuple(image["spacing"]),
        np.array(image["sums"]),
        None if number is None else stack.source.paths[number],
        image["ignore"],
    )


def _text(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4")).decode()


def _values(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")
