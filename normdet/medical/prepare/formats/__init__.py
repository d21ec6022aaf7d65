"""The formats of labelling tools: one file each, and this table."""

from normdet.medical.prepare.formats import (
    azure_ml,
    box_lines,
    createml,
    csv_boxes,
    cvat,
    darwin,
    datumaro,
    dota,
    fiftyone,
    geojson,
    ground_truth,
    hasty,
    label_studio,
    labelbox,
    labelme,
    labelme_xml,
    napari,
    open_images,
    rle_table,
    scalabel,
    scale_ai,
    slide_xml,
    superannotate,
    supervisely,
    via,
    voc_xml,
    vott,
    yolo,
)
from normdet.medical.prepare.formats.base import Builder, Files, Format
from normdet.medical.prepare.formats.refused import refuse

# In the order in which they are tried: formats with clearer marks first.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        supervisely.FORMAT,
        fiftyone.FORMAT,
        label_studio.FORMAT,
        createml.FORMAT,
        datumaro.FORMAT,
        hasty.FORMAT,
        superannotate.FORMAT,
        vott.FORMAT,
        labelbox.FORMAT,
        scale_ai.FORMAT,
        azure_ml.FORMAT,
        ground_truth.FORMAT,
        scalabel.FORMAT,
        darwin.FORMAT,
        via.FORMAT,
        labelme.FORMAT,
        geojson.FORMAT,
        cvat.FORMAT,
        slide_xml.FORMAT,
        labelme_xml.FORMAT,
        voc_xml.FORMAT,
        box_lines.FORMAT,
        dota.FORMAT,
        yolo.FORMAT,
        csv_boxes.FORMAT,
        open_images.FORMAT,
        rle_table.FORMAT,
        napari.FORMAT,
    )
}

__all__ = ["FORMATS", "Builder", "Files", "Format", "refuse"]
