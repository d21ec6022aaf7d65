"""Exports of labelling services, and annotation files that data sets are published in."""

import json

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from tests.medical.prepare.drawn import (
    BOX,
    FLAT,
    HEIGHT,
    NAMES,
    OUTLINE,
    WIDTH,
    image,
    write,
)

X, Y, W, H = BOX
POINTS = [{"x": x, "y": y} for x, y in OUTLINE]
SHARES = [X / WIDTH, Y / HEIGHT, (X + W) / WIDTH, (Y + H) / HEIGHT]
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[Y : Y + H, X : X + W] = 1


def images(root, suffix=".png"):
    for name in NAMES:
        image(root / f"{name}{suffix}")


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows)


def datumaro(root):
    rle = mask_util.encode(np.asfortranarray(MASK))
    halves = [[10, 12, 20, 12, 20, 36, 10, 36], [20, 12, 30, 12, 30, 36, 20, 36]]
    shapes = {
        "a": [{"type": "polygon", "points": half, "group": 7} for half in halves],
        "b": [{"type": "bbox", "bbox": BOX, "group": 0}],
        "c": [{"type": "mask", "rle": {"counts": rle["counts"].decode(), "size": rle["size"]}},
              {"type": "points", "points": [3, 4]}],
    }  # fmt: skip
    images(root / "images" / "default")
    items = [
        {"id": name, "annotations": [{"id": 0, "label_id": 1, **one} for one in found],
         "attr": {"frame": 0}, "image": {"path": f"{name}.png", "size": [HEIGHT, WIDTH]}}
        for name, found in shapes.items()
    ]  # fmt: skip
    labels = [{"name": "dirt", "parent": ""}, {"name": "cell", "parent": ""}]
    content = {"info": {}, "categories": {"label": {"labels": labels}}, "items": items}
    write(root / "annotations" / "default.json", content)


def box_lines(root):
    """Two images with an object, one with none in a list of its own name, and a space."""
    for name in NAMES:
        image(root / f"{name} 1.png")
    corners = f"{X},{Y},{X + W},{Y + H},1"
    write(root / "_annotations.txt", "\n".join(f"{name} 1.png {corners}" for name in NAMES))
    write(root / "_classes.txt", "dirt\ncell\n")


def dota(root):
    images(root / "images")
    for name in NAMES:
        corners = " ".join(f"{value:.1f}" for value in FLAT)
        text = f"imagesource:GoogleEarth\ngsd:0.1\n{corners} cell 0\n"
        write(root / "labelTxt" / f"{name}.txt", text)


def open_images(root):
    images(root / "images")
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf"
    x0, y0, x1, y1 = SHARES
    rows = [f"{name},xclick,/m/01,1,{x0},{x1},{y0},{y1},0,0" for name in NAMES]
    write(root / "annotations" / "train-annotations-bbox.csv", "\n".join([head, *rows]))
    write(root / "annotations" / "class-descriptions.csv", "/m/01,cell\n/m/02,dirt\n")


def superannotate(root):
    corners = {"x1": X, "y1": Y, "x2": X + W, "y2": Y + H}
    shapes = {"a": {"type": "polygon", "points": FLAT}, "b": {"type": "bbox", "points": corners},
              "c": {"type": "bbox", "points": corners}}  # fmt: skip
    for name, shape in shapes.items():
        image(root / f"{name}.png")
        write(root / f"{name}.png___objects.json", {
            "metadata": {"name": f"{name}.png", "width": WIDTH, "height": HEIGHT},
            "instances": [{"className": "cell", "classId": 3, **shape}, {"type": "tag"}],
        })  # fmt: skip


def superannotate_pixels(root):
    for name in NAMES:
        image(root / f"{name}.png")
        save = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        save[MASK > 0] = 0, 1, 17, 255
        Image.fromarray(save).save(root / f"{name}.png___save.png")
        write(root / f"{name}.png___pixel.json", {
            "metadata": {"name": f"{name}.png", "width": WIDTH, "height": HEIGHT},
            "instances": [{"className": "cell", "parts": [{"color": "#000111"}]}],
        })  # fmt: skip


def labelbox(root):
    images(root)
    box = {"top": Y, "left": X, "height": H, "width": W}
    shapes = [{"polygon": POINTS}, {"bounding_box": box}, {"bounding_box": box}]
    rows = [
        {"data_row": {"id": "x", "external_id": f"{name}.png", "row_data": "https://x.y/z"},
         "media_attributes": {"height": HEIGHT, "width": WIDTH},
         "projects": {"p": {"labels": [{"annotations": {"objects": [{"name": "cell", **one}]}}]}}}
        for name, one in zip(NAMES, shapes, strict=True)
    ]  # fmt: skip
    write(root / "export.ndjson", lines(rows))


def labelbox_old(root):
    images(root)
    box = {"top": Y, "left": X, "height": H, "width": W}
    shapes = [{"polygon": POINTS}, {"bbox": box}, {"bbox": box}]
    write(root / "export.json", [
        {"ID": "x", "Labeled Data": f"https://x.y/{name}.png", "External ID": f"{name}.png",
         "Label": {"objects": [{"title": "cell", **one}], "classifications": []}}
        for name, one in zip(NAMES, shapes, strict=True)
    ])  # fmt: skip


def darwin(root):
    runs = [0, Y * WIDTH + X]
    for row in range(H):
        runs += [1, W, 0, WIDTH - W if row < H - 1 else WIDTH - X - W + (HEIGHT - Y - H) * WIDTH]
    layer = {"dense_rle": runs, "mask_annotation_ids_mapping": {"m": 1}, "total_pixels": 4800}
    shapes = {
        "a": [{"polygon": {"paths": [POINTS]}, "bounding_box": {"x": 0, "y": 0, "w": 1, "h": 1}}],
        "b": [{"bounding_box": {"x": X, "y": Y, "w": W, "h": H}}],
        "c": [{"id": "m", "mask": {}}, {"name": "__raster_layer__", "raster_layer": layer}],
    }
    for name, found in shapes.items():
        image(root / "images" / f"{name}.png")
        slot = {"slot_name": "0", "width": WIDTH, "height": HEIGHT, "type": "image"}
        write(root / f"{name}.json", {
            "version": "2.0", "item": {"name": f"{name}.png", "path": "/", "slots": [slot]},
            "annotations": [{"name": "cell", "slot_names": ["0"], **one} for one in found],
        })  # fmt: skip


def darwin_1(root):
    for name in NAMES:
        image(root / "images" / f"{name}.png")
        write(root / f"{name}.json", {
            "dataset": "d", "image": {"filename": f"{name}.png", "width": WIDTH, "height": HEIGHT},
            "annotations": [{"name": "cell", "polygon": {"path": POINTS}}],
        })  # fmt: skip


def scalabel(root):
    images(root / "images")
    box = {"x1": X, "y1": Y, "x2": X + W - 1, "y2": Y + H - 1}
    outline = [{"vertices": OUTLINE, "types": "LLLL", "closed": True}]
    shapes = [{"box2d": box}, {"box2d": box}, {"poly2d": outline}]
    write(root / "det_train.json", [
        {"name": f"{name}.png", "timestamp": 10, "labels": [{"id": "0", "category": "cell", **one}]}
        for name, one in zip(NAMES, shapes, strict=True)
    ])  # fmt: skip


def scale(root):
    images(root)
    box = {"type": "box", "left": X, "top": Y, "width": W, "height": H}
    shapes = [{"type": "polygon", "vertices": POINTS}, box, box]
    write(root / "tasks.json", [
        {"task_id": "x", "params": {"attachment": f"https://x.y/{name}.png"},
         "response": {"annotations": [{"label": "cell", **one}]}}
        for name, one in zip(NAMES, shapes, strict=True)
    ])  # fmt: skip


def hasty(root):
    images(root / "set")
    shapes = [{"polygon": OUTLINE}, {}, {}]
    write(root / "project.json", {
        "project_name": "p", "export_format_version": "1.1",
        "label_classes": [{"class_name": "dirt"}, {"class_name": "cell"}],
        "images": [
            {"image_name": f"{name}.png", "dataset_name": "set", "width": WIDTH, "height": HEIGHT,
             "labels": [{"class_name": "cell", "bbox": [X, Y, X + W, Y + H], **one}]}
            for name, one in zip(NAMES, shapes, strict=True)],
    })  # fmt: skip


def azure_ml(root):
    images(root)
    box = dict(zip(("topX", "topY", "bottomX", "bottomY"), SHARES, strict=True))
    outline = [v for x, y in OUTLINE for v in (x / WIDTH, y / HEIGHT)]
    shapes = [box, box, {"polygon": [outline]}]
    write(root / "train.jsonl", lines(
        {"image_url": f"AmlDatastore://d/{name}.png", "label": [{"label": "cell", **one}],
         "image_details": {"format": "png", "width": f"{WIDTH}px", "height": HEIGHT}}
        for name, one in zip(NAMES, shapes, strict=True)
    ).replace("px", ""))  # fmt: skip


def vott(root):
    images(root)
    box = {"left": X, "top": Y, "width": W, "height": H}
    kinds = ("POLYGON", "RECTANGLE", "RECTANGLE")
    write(root / "vott-json-export" / "p-export.json", {"assets": {
        name: {"asset": {"name": f"{name}.png", "size": {"width": WIDTH, "height": HEIGHT}},
               "regions": [{"type": kind, "tags": ["cell"], "boundingBox": box, "points": POINTS}]}
        for name, kind in zip(NAMES, kinds, strict=True)
    }})  # fmt: skip


def ground_truth(root):
    images(root)
    place = {"class_id": 0, "left": X, "top": Y, "width": W, "height": H}
    job = {"image_size": [{"width": WIDTH, "height": HEIGHT, "depth": 3}], "annotations": [place]}
    write(root / "output.manifest", lines(
        {"source-ref": f"s3://bucket/{name}.png", "job": job,
         "job-metadata": {"class-map": {"0": "cell"}, "type": "groundtruth/object-detection"}}
        for name in NAMES
    ))  # fmt: skip


def aperio(root):
    corners = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in OUTLINE)
    for name in NAMES:
        image(root / f"{name}.tif")
        write(root / f"{name}.xml", f"""<Annotations MicronsPerPixel="0.25"><Annotation Id="1"
            Name="cell"><Regions><Region Id="1" NegativeROA="0"><Vertices>{corners}</Vertices>
            </Region></Regions></Annotation></Annotations>""")  # fmt: skip


def asap(root):
    corners = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>'
                      for n, (x, y) in enumerate(OUTLINE))  # fmt: skip
    for name in NAMES:
        image(root / f"{name}.tif")
        write(root / f"{name}.xml", f"""<?xml version="1.0"?><ASAP_Annotations><Annotations>
            <Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="cell"><Coordinates>
            {corners}</Coordinates></Annotation></Annotations></ASAP_Annotations>""")  # fmt: skip


def rle_table(root):
    runs = " ".join(f"{x * HEIGHT + Y + 1} {H}" for x in range(X, X + W))
    images(root / "train")
    rows = ["ImageId,EncodedPixels", *(f"{name},{runs}" for name in NAMES)]
    write(root / "train.csv", "\n".join(rows))


def labelme_xml(root):
    corners = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in OUTLINE)
    for name in NAMES:
        image(root / f"{name}.png")
        write(root / f"{name}.xml", f"""<annotation><filename>{name}.png</filename><folder/>
            <imagesize><nrows>{HEIGHT}</nrows><ncols>{WIDTH}</ncols></imagesize><object>
            <name>cell</name><deleted>0</deleted><polygon>{corners}</polygon></object>
            </annotation>""")  # fmt: skip


# The maker of an export, its kind, and how many of its three objects have a mask.
SERVICES = {
    "datumaro": (datumaro, "datumaro", 2),
    "box lines": (box_lines, "box-lines", 0),
    "dota": (dota, "dota", 3),
    "open images": (open_images, "open-images", 0),
    "superannotate": (superannotate, "superannotate", 1),
    "superannotate, pixels": (superannotate_pixels, "superannotate", 3),
    "labelbox": (labelbox, "labelbox", 1),
    "labelbox, list": (labelbox_old, "labelbox", 1),
    "darwin": (darwin, "darwin", 2),
    "darwin of version 1": (darwin_1, "darwin", 3),
    "scalabel": (scalabel, "scalabel", 1),
    "scale": (scale, "scale", 1),
    "hasty": (hasty, "hasty", 1),
    "azure ml": (azure_ml, "azure-ml", 1),
    "vott": (vott, "vott", 1),
    "ground truth": (ground_truth, "ground-truth", 0),
    "aperio": (aperio, "slide-xml", 3),
    "asap": (asap, "slide-xml", 3),
    "table of runs": (rle_table, "rle-table", 3),
    "labelme's xml": (labelme_xml, "labelme-xml", 3),
}
