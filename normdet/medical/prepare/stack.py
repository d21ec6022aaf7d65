"""What every kind of source gives: stacks of slices, and the objects in each slice."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from normdet.data.slices import Slice, Source


@dataclass(frozen=True)
class Stack:
    """An image, a volume or a series with its annotations.

    Attributes:
        source: its files.
        objects: from a slice to COCO annotations without ids, `category` a name in place of an id;
            raises NormdetError where the annotations do not fit.
        group: what is never divided between splits; see :meth:`group_of`.
        split: the part the source puts it in, or None.
        patient: whether `group` is a patient.
        classes: those that the source declares, whether or not they occur; empty if it does not.
        labels: the files that the objects come from, where `source` does not have them.
        given: changes with objects that were read already, and tells nothing of them.
        reading: how the values of label images are understood, the same for a whole source.
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
        """The group of an image whose file names `patient` or none, and whether that is a patient.

        The patient of the stack wins: the user said how to find it.
        """
        if self.patient or patient is None:
            return self.group, self.patient
        return patient, True
