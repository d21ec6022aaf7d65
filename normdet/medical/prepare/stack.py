"""Stacks of slices with the objects in each slice; every kind of source is read as these."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from normdet.data.slices import Slice, Source


@dataclass(frozen=True)
class Stack:
    """An image, a volume or a series with its annotations.

    Attributes:
        source: its files.
        objects: maps a slice to COCO annotations without ids, with a name as `category`; raises
            NormdetError if the annotations do not fit.
        group: images of one group go to one split; see :meth:`group_of`.
        split: the part the source puts it in, or None.
        patient: whether `group` is a patient.
        classes: those that the source declares, whether or not they occur; may be empty.
        labels: the files of the objects, if they are not in `source`.
        given: a hash of objects that were read already.
        reading: how the values of label images are read, the same for a whole source.
    """

    source: Source
    objects: Callable[[Slice], list[dict]]
    group: str
    split: str | None = None
    patient: bool = False
    classes: tuple[str, ...] = ()
    labels: tuple[Path, ...] = ()
    given: str = ""
    reading: str = ""

    def group_of(self, patient: str | None) -> tuple[str, bool]:
        """The group of an image whose file names `patient`, and whether that is a patient.

        The patient of the stack wins, because the user said how to find it.
        """
        if self.patient or patient is None:
            return self.group, self.patient
        return patient, True
