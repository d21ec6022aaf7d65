"""The formats of labelling tools: one file each, and this table."""

from normdet.medical.prepare.formats import (
    createml,
    csv_boxes,
    cvat,
    fiftyone,
    geojson,
    label_studio,
    labelme,
    napari,
    supervisely,
    via,
    voc_xml,
    yolo,
)
from normdet.medical.prepare.formats.base import Builder, Files, Format

# In the order in which they are tried: formats with clearer marks first.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        supervisely.FORMAT,
        fiftyone.FORMAT,
        label_studio.FORMAT,
        createml.FORMAT,
        via.FORMAT,
        labelme.FORMAT,
        geojson.FORMAT,
        cvat.FORMAT,
        voc_xml.FORMAT,
        yolo.FORMAT,
        csv_boxes.FORMAT,
        napari.FORMAT,
    )
}

__all__ = ["FORMATS", "Builder", "Files", "Format"]
