"""The default exports of labelling tools give the objects that were drawn."""

import base64
import io
import json
import zlib

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from PIL import Image

from normdet.cli import main
from normdet.data import image_file
from tests.medical.prepare.drawn import (
    BOX,
    FLAT,
    HEIGHT,
    NAMES,
    OUTLINE,
    WIDTH,
    image,
    png,
    write,
)
from tests.medical.prepare.services import SERVICES


def labelme(root):
    shapes = {
        "a": {"shape_type": "polygon", "points": OUTLINE},
        "b": {"shape_type": "rectangle", "points": [OUTLINE[2], OUTLINE[0]]},
        "c": {"shape_type": "mask", "points": [OUTLINE[0], OUTLINE[2]],
              "mask": base64.b64encode(png(np.ones((24, 20)))).decode()},
    }  # fmt: skip
    for name, shape in shapes.items():
        image(root / f"{name}.png")
        write(root / f"{name}.json", {
            "version": "5.4", "flags": {}, "shapes": [{"label": "cell", **shape}],
            "imagePath": f"..\\lab\\{name}.png", "imageData": "x" * 99,
            "imageHeight": HEIGHT, "imageWidth": WIDTH,
        })  # fmt: skip


def via_regions():
    xs, ys = zip(*OUTLINE, strict=True)
    box = dict(zip(("x", "y", "width", "height"), BOX, strict=True))
    label = {"class": "cell"}
    return {
        "a": {"shape_attributes": {"name": "polygon", "all_points_x": xs, "all_points_y": ys},
              "region_attributes": label},
        "b": {"shape_attributes": {"name": "rect", **box}, "region_attributes": label},
        "c": {"shape_attributes": {"name": "rect", **box}, "region_attributes": label},
    }  # fmt: skip


def via(root, old=False, project=False):
    content = {}
    for name, region in via_regions().items():
        image(root / f"{name}.png")
        regions = {"0": region} if old else [region]
        content[f"{name}.png123"] = {"filename": f"{name}.png", "size": 123, "regions": regions}
    write(root / "via.json", {"_via_settings": {}, "_via_img_metadata": content} if project
          else content)  # fmt: skip


def via_csv(root):
    lines = ["filename,file_size,file_attributes,region_count,region_id,"
             "region_shape_attributes,region_attributes"]  # fmt: skip
    for name, region in via_regions().items():
        image(root / f"{name}.png")
        cells = [json.dumps(region[key]).replace('"', '""')
                 for key in ("shape_attributes", "region_attributes")]  # fmt: skip
        lines.append(f'{name}.png,123,"{{}}",1,0,"{cells[0]}","{cells[1]}"')
    write(root / "via_export.csv", "\n".join(lines))


def qupath(root):
    for name in NAMES:
        image(root / f"{name}.tif")
        ring = [list(point) for point in (*OUTLINE, OUTLINE[0])]
        feature = {
            "type": "Feature", "id": "x",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation",
                           "classification": {"name": "cell", "color": [1, 2, 3]}},
        }  # fmt: skip
        write(root / f"{name}.geojson", {"type": "FeatureCollection", "features": [feature]})


def cvat(root):
    shapes = {
        "a": f'<polygon label="cell" points="{";".join(f"{x},{y}" for x, y in OUTLINE)}"/>',
        "b": '<box label="cell" xtl="10" ytl="12" xbr="30" ybr="36"/>',
        "c": '<mask label="cell" left="10" top="12" width="20" height="24" rle="0, 480"/>',
    }
    images = "".join(
        f'<image id="{n}" name="{name}.png" width="{WIDTH}" height="{HEIGHT}">{shape}</image>'
        for n, (name, shape) in enumerate(shapes.items())
    )
    for name in NAMES:
        image(root / "images" / f"{name}.png")
    text = f"<annotations><version>1.1</version>{images}</annotations>"
    write(root / "annotations.xml", f'<?xml version="1.0"?>{text}')


def label_studio(root):
    tasks = []
    percent = [(100 * x / WIDTH, 100 * y / HEIGHT) for x, y in OUTLINE]
    x, y = percent[0]
    w, h = 100 * 20 / WIDTH, 100 * 24 / HEIGHT
    values = {
        "a": {"points": percent, "polygonlabels": ["cell"]},
        "b": {"x": x, "y": y, "width": w, "height": h, "rotation": 0,
              "rectanglelabels": ["cell"]},
        "c": {"format": "rle", "rle": brush(), "brushlabels": ["cell"]},
    }  # fmt: skip
    for n, (name, value) in enumerate(values.items()):
        image(root / "images" / f"{n}fb0618f-{name}.png")
        region = {"original_width": WIDTH, "original_height": HEIGHT, "value": value}
        tasks.append({
            "id": n, "data": {"image": f"/data/upload/4/{n}fb0618f-{name}.png"},
            "annotations": [{"result": [], "was_cancelled": True}, {"result": [region]}],
        })  # fmt: skip
    write(root / "project.json", tasks)


def brush():
    """A mask in Label Studio's stream of bits: no runs, every value of 8 bits by itself."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[12:36, 10:30] = 255
    values = np.repeat(mask.ravel(), 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    place = 0
    while place < len(values):  # runs of one value, or of few others
        run = 1
        last = min(len(values), place + 60000)
        while place + run < last and values[place + run] == values[place]:
            run += 1
        bits += "1" + "11" + f"{run - 1:016b}" + f"{values[place]:08b}"
        place += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


def label_studio_min(root):
    tasks = []
    x, y = 100 * 10 / WIDTH, 100 * 12 / HEIGHT
    for n, name in enumerate(NAMES):
        image(root / "images" / f"{name}.png")
        label = [{"x": x, "y": y, "width": 100 * 20 / WIDTH, "height": 100 * 24 / HEIGHT,
                  "rotation": 0, "rectanglelabels": ["cell"], "original_width": WIDTH,
                  "original_height": HEIGHT}]  # fmt: skip
        tasks.append({"image": f"/data/upload/1/{name}.png", "id": n, "label": label})
    write(root / "min.json", tasks)


def supervisely(root):
    write(root / "meta.json", {"classes": [{"title": "cell", "shape": "polygon"}]})
    bitmap = base64.b64encode(zlib.compress(png(np.ones((24, 20))))).decode()
    figures = {
        "a": {"geometryType": "polygon", "points": {"exterior": OUTLINE, "interior": []}},
        "b": {"geometryType": "rectangle",
              "points": {"exterior": [OUTLINE[0], OUTLINE[2]], "interior": []}},
        "c": {"geometryType": "bitmap", "bitmap": {"data": bitmap, "origin": [10, 12]}},
    }  # fmt: skip
    for name, figure in figures.items():
        image(root / "ds0" / "img" / f"{name}.png")
        write(root / "ds0" / "ann" / f"{name}.png.json", {
            "description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH},
            "objects": [{"id": 1, "classTitle": "cell", **figure}],
        })  # fmt: skip


def createml(root):
    content = []
    for name in NAMES:
        image(root / f"{name}.png")
        place = {"x": 20, "y": 24, "width": 20, "height": 24}
        content.append({"image": f"{name}.png",
                        "annotations": [{"label": "cell", "coordinates": place}]})  # fmt: skip
    write(root / "_annotations.createml.json", content)


def table(root):
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for name in NAMES:
        image(root / f"{name}.png")
        lines.append(f"{name}.png,{WIDTH},{HEIGHT},cell,10,12,30,36")
    write(root / "_annotations.csv", "\n".join(lines))


def yolo(root, polygons=False):
    write(root / "data.yaml", "names: ['dirt', 'cell']\ntrain: ../train/images\n")
    for name in NAMES:
        image(root / "train" / "images" / f"{name}.png")
        numbers = [20 / WIDTH, 24 / HEIGHT, 20 / WIDTH, 24 / HEIGHT]
        if polygons:
            numbers = [v for x, y in OUTLINE for v in (x / WIDTH, y / HEIGHT)]
        write(root / "train" / "labels" / f"{name}.txt", f"1 {' '.join(map(str, numbers))}\n")


def yolo_of_labelimg(root):
    write(root / "classes.txt", "dirt\ncell\n")
    for name in NAMES:
        image(root / f"{name}.png")
        write(root / f"{name}.txt",
              f"1 {20 / WIDTH} {24 / HEIGHT} {20 / WIDTH} {24 / HEIGHT}\n")  # fmt: skip


def labelimg(root):
    for name in NAMES:
        image(root / f"{name}.png")
        write(root / f"{name}.xml", f"""<annotation><filename>{name}.png</filename>
            <size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>
            <object><name>cell</name><bndbox><xmin>11</xmin><ymin>13</ymin><xmax>30</xmax>
            <ymax>36</ymax></bndbox></object></annotation>""")  # fmt: skip


def napari(root):
    head = "index,shape-type,vertex-index,axis-0,axis-1"
    for name in NAMES:
        image(root / f"{name}.tif")
        rows = [f"0,polygon,{n},{y - 0.5},{x - 0.5}" for n, (x, y) in enumerate(OUTLINE)]
        write(root / f"{name}.csv", "\n".join([head, *rows]))


def fiftyone(root):
    samples = []
    for n, name in enumerate(NAMES):
        image(root / "data" / f"{name}.png")
        shares = [10 / WIDTH, 12 / HEIGHT, 20 / WIDTH, 24 / HEIGHT]
        out = io.BytesIO()
        np.save(out, np.ones((24, 20), bool))
        mask = {"$binary": {"base64": base64.b64encode(zlib.compress(out.getvalue())).decode()}}
        found = {"label": "cell", "bounding_box": shares} | ({"mask": mask} if n else {})
        samples.append({"filepath": f"data/{name}.png", "tags": [],
                        "ground_truth": {"_cls": "Detections", "detections": [found]}})  # fmt: skip
    write(root / "samples.json", {"samples": samples})


def label_studio_csv(root):
    """JSON-MIN's regions in the cells of a table."""
    label_studio_min(root)
    lines = ["image,id,label,annotator"]
    for task in json.loads((root / "min.json").read_text()):
        cell = json.dumps(task["label"]).replace('"', '""')
        lines.append(f'{task["image"]},{task["id"]},"{cell}",1')
    (root / "min.json").unlink()
    write(root / "project.csv", "\n".join(lines))


def table_without_head(root):
    lines = []
    for name in NAMES:
        image(root / f"{name}.png")
        lines.append(f"{name}.png,10,12,30,36,cell")
    write(root / "_annotations.csv", "\n".join(lines))


def cvat_video(root):
    boxes = ""
    for number in range(4):
        image(root / "images" / f"frame_{number:06d}.PNG")
        boxes += (f'<box frame="{number}" outside="{int(number == 3)}" occluded="0" keyframe="1" '
                  'xtl="10" ytl="12" xbr="30" ybr="36"/>')  # fmt: skip
    (root / "images" / "frame_000003.PNG").unlink()
    text = f'<annotations><track id="0" label="cell">{boxes}</track></annotations>'
    write(root / "annotations.xml", f'<?xml version="1.0"?>{text}')


def labelme_groups(root):
    """Each object in two polygons; what JSON says of the image comes first, and is long."""
    for name in NAMES:
        image(root / f"{name}.png")
        halves = [
            [(10, 12), (20, 12), (20, 36), (10, 36)],
            [(20, 12), (30, 12), (30, 36), (20, 36)],
        ]
        shapes = [{"label": "cell", "points": half, "group_id": 4} for half in halves]
        write(root / f"{name}.json", {
            "imageData": "x" * 200_000, "imagePath": f"{name}.png", "imageHeight": HEIGHT,
            "imageWidth": WIDTH, "shapes": shapes,
        })  # fmt: skip


def via_3(root):
    for name in NAMES:
        image(root / f"{name}.png")
    xy = [[2, *BOX], [7, *FLAT], [2, *BOX]]
    numbers = [str(n) for n in range(1, 4)]
    write(root / "project.json", {
        "project": {"pid": "x"}, "config": {}, "view": {n: {"fid_list": [n]} for n in numbers},
        "attribute": {"1": {"aname": "class", "options": {"0": "cell"}}},
        "file": {n: {"fid": n, "fname": f"{a}.png"} for n, a in zip(numbers, NAMES, strict=True)},
        "metadata": {f"{n}_x": {"vid": n, "xy": place, "av": {"1": "0"}}
                     for n, place in zip(numbers, xy, strict=True)},
    })  # fmt: skip


def qupath_of_ome(root):
    """Detections inside of a region, which is no object, in images of two endings."""
    qupath(root)
    for name in NAMES:
        (root / f"{name}.tif").rename(root / f"{name}.ome.tif")
        path = root / f"{name}.geojson"
        (found,) = json.loads(path.read_text())["features"]
        found["properties"]["objectType"] = "detection"
        corners = [[0, 0], [79, 0], [79, 59], [0, 59], [0, 0]]
        region = {"type": "Feature", "properties": {"objectType": "annotation"},
                  "geometry": {"type": "Polygon", "coordinates": [corners]}}  # fmt: skip
        write(path, [region, found])


def yolo_pose(root):
    yolo(root)
    (root / "data.yaml").write_text("names: [dirt, cell]\nkpt_shape: [2, 3]\n")
    for path in (root / "train" / "labels").iterdir():
        text = path.read_text().strip().replace("1 ", "1.0\t", 1)
        path.write_text(f"{text} 0.2 0.3 2 0.3 0.4 2\r\n")


def coco_in_other_words(root):
    """Numbers as text, and outlines as lists of points."""
    for name in NAMES:
        image(root / "images" / f"{name}.png")
    size = {"height": str(HEIGHT), "width": str(WIDTH)}
    shapes = [[[list(point) for point in OUTLINE]], [list(point) for point in OUTLINE], [FLAT]]
    write(root / "c.json", {
        "images": [{"id": n, "file_name": f"{a}.png", **size} for n, a in enumerate(NAMES)],
        "annotations": [{"id": n, "image_id": str(n), "category_id": "1", "iscrowd": "0",
                         "bbox": [str(value) for value in BOX], "segmentation": shape}
                        for n, shape in enumerate(shapes)],
        "categories": [{"id": 1, "name": "cell"}],
    })  # fmt: skip


EXPORTS = {
    "label studio, table": (label_studio_csv, "label-studio", 0),
    "table without head": (table_without_head, "csv", 0),
    "cvat of a video": (cvat_video, "cvat", 0),
    "labelme groups": (labelme_groups, "labelme", 3),
    "via of version 3": (via_3, "via", 1),
    "qupath in a region": (qupath_of_ome, "geojson", 3),
    "yolo pose": (yolo_pose, "yolo", 0),
    "coco in other words": (coco_in_other_words, "coco", 3),
    "labelme": (labelme, "labelme", 2),
    "via": (via, "via", 1),
    "via of version 1": (lambda root: via(root, old=True), "via", 1),
    "via project": (lambda root: via(root, project=True), "via", 1),
    "via csv": (via_csv, "via", 1),
    "qupath": (qupath, "geojson", 3),
    "cvat": (cvat, "cvat", 2),
    "label studio": (label_studio, "label-studio", 2),
    "label studio, minimal": (label_studio_min, "label-studio", 0),
    "supervisely": (supervisely, "supervisely", 2),
    "createml": (createml, "createml", 0),
    "roboflow's table": (table, "csv", 0),
    "yolo": (yolo, "yolo", 0),
    "yolo polygons": (lambda root: yolo(root, polygons=True), "yolo", 3),
    "yolo of labelimg": (yolo_of_labelimg, "yolo", 0),
    "labelimg": (labelimg, "voc-xml", 0),
    "napari": (napari, "napari", 3),
    "fiftyone": (fiftyone, "fiftyone", 2),
    **SERVICES,
}


@pytest.mark.parametrize("tool", EXPORTS)
def test_the_drawn_objects_come_back(tmp_path, capsys, tool):
    make, kind, with_masks = EXPORTS[tool]
    make(tmp_path / "lab")
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]) == 0
    assert "faults   0" in capsys.readouterr().out
    made = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert made["kind"] == kind and sum(made["images"].values()) == 3
    found = []
    for part in ("train", "val"):
        content = json.loads((tmp_path / "out" / f"{part}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        found += content["annotations"]
        assert {names[entry["category_id"]] for entry in content["annotations"]} <= {
            "cell", "object",
        }  # fmt: skip
    assert len(found) == 3
    for entry in found:
        assert np.allclose(entry["bbox"], BOX, atol=1e-3)
        mask = entry.get("segmentation")
        if mask:
            if isinstance(mask, list):
                mask = mask_util.merge(mask_util.frPyObjects(mask, HEIGHT, WIDTH))
            drawn = mask_util.decode(mask)
            expected = np.zeros((HEIGHT, WIDTH), np.uint8)
            expected[12:36, 10:30] = 1
            assert (drawn != expected).sum() <= 90  # an outline's own pixels
    assert sum("segmentation" in entry for entry in found) == with_masks


def test_a_hole_is_no_part_of_an_object(tmp_path):
    qupath(tmp_path / "lab")
    path = tmp_path / "lab" / "a.geojson"
    content = json.loads(path.read_text())
    hole = [[15, 18], [25, 18], [25, 30], [15, 30], [15, 18]]
    content["features"][0]["geometry"]["coordinates"].append(hole)
    path.write_text(json.dumps(content))
    command = ["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out"), "--val", "0"]
    assert main(command) == 0
    content = json.loads((tmp_path / "out" / "train.json").read_text())
    areas = [entry["area"] for entry in content["annotations"]]
    assert 300 < min(areas) < 400 < 470 < sorted(areas)[1]


def test_the_splits_of_roboflow_are_kept(tmp_path):
    for part, names in (("train", "ab"), ("valid", "c"), ("test", "d")):
        for name in names:
            image(tmp_path / "lab" / part / f"{name}.png")
            xml = f"<annotation><filename>{name}.png</filename>{OBJECT}</annotation>"
            write(tmp_path / "lab" / part / f"{name}.xml", xml)
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]) == 0
    made = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert made["images"] == {"train": 2, "val": 1, "test": 1}


OBJECT = """<object><name>cell</name><bndbox><xmin>11</xmin><ymin>13</ymin><xmax>30</xmax>
<ymax>36</ymax></bndbox></object>"""


@pytest.mark.parametrize(
    "tool", [t for t in EXPORTS if EXPORTS[t][1] not in ("csv", "createml", "coco")]
)
def test_a_broken_file_is_named_and_the_others_are_read(tmp_path, capsys, tool):
    EXPORTS[tool][0](tmp_path / "lab")
    out = str(tmp_path / "out")
    files = [p for p in (tmp_path / "lab").rglob("*") if p.suffix in (
        ".json", ".xml", ".txt", ".csv", ".geojson", ".ndjson", ".jsonl", ".manifest")]  # fmt: skip
    files = [p for p in files if p.name not in ("meta.json", "classes.txt")]
    content = files[0].read_bytes()
    files[0].write_bytes(content[: int(len(content) * 0.8)])
    code = main(["prepare", str(tmp_path / "lab"), "--out", out, "--kind", EXPORTS[tool][1]])
    said = capsys.readouterr()
    # A list that is cut short is a shorter list.
    whole_lists = ("yolo", "napari", "dota", "open-images", "box-lines")
    if len(files) > 1 and EXPORTS[tool][1] not in whole_lists:
        assert code == 0 and files[0].name in said.err
    assert "Traceback" not in said.err + said.out


@pytest.mark.parametrize("names", [
    ("{}.tif", "{}_cp_masks.png"), ("{}_img.tif", "{}_masks.tif"), ("{}.tif", "{}-labelled.tif"),
    ("images/{}.ome.tif", "masks/{}.tif"), ("{}.ome.tif", "{}.tif"), ("{}.tif", "{}-labels.tif"),
    ("{}.tif", "{}_Simple Segmentation.tif"), ("{}.tif", "{}_Object Identities.tif"),
    ("JPEGImages/{}.tif", "SegmentationObject/{}.png"), ("{}.tif", "{} Labels.tif"),
    ("data/{}.tif", "labels/{}.png"), ("JPEGImages/{}.tif", "SegmentationObjectPNG/{}.png"),
])  # fmt: skip
def test_label_images_as_tools_name_them(tmp_path, capsys, names):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[12:36, 10:30], labels[40:50, 40:60] = 1, 2
    for name in NAMES:
        for text, pixels in zip(names, (labels * 90, labels), strict=True):
            path = tmp_path / "lab" / text.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                Image.fromarray(pixels).save(path)
            else:
                tifffile.imwrite(path, pixels)
        tifffile.imwrite(tmp_path / "lab" / f"{name}_flows.tif", labels)  # Cellpose's by-product
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]) == 0
    assert "faults   0" in capsys.readouterr().out
    made = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert sum(made["objects"].values()) == 6


def test_the_file_of_cellpose_s_window_is_read_and_runs_nothing(tmp_path, capsys):
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    labels[12:36, 10:30], labels[40:50, 40:60] = 1, 2
    (tmp_path / "lab").mkdir()
    for name in NAMES:
        image(tmp_path / "lab" / f"{name}.png")
        content = {"masks": labels, "outlines": labels, "ismanual": np.zeros(2, bool),
                   "filename": f"{name}.png", "flows": [labels[None]], "diameter": np.float32(9),
                   "chan_choose": [0, 0], "colors": np.zeros((2, 3), np.uint8)}  # fmt: skip
        np.save(tmp_path / "lab" / f"{name}_seg.npy", content, allow_pickle=True)
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (ran.touch, ())

    image(tmp_path / "lab" / "evil.png")
    np.save(tmp_path / "lab" / "evil_seg.npy", {"masks": Evil()}, allow_pickle=True)
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]) == 0
    made = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert sum(made["objects"].values()) == 6 and made["faults"] == 1
    assert "evil_seg.npy cannot be read" in capsys.readouterr().err and not ran.exists()


def test_of_two_labels_objects_win_over_classes(tmp_path, capsys):
    for name in NAMES:
        image(tmp_path / "lab" / "JPEGImages" / f"{name}.jpg")
        for kind, values in (("Object", (1, 2)), ("Class", (1, 1))):
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[12:36, 10:30], labels[12:36, 31:50] = values
            palette(tmp_path / "lab" / f"Segmentation{kind}" / f"{name}.png", labels)
        shown = tmp_path / "lab" / "SegmentationObjectVisualization" / f"{name}.jpg"
        image(shown)  # labelme's, to look at
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "left out 3 labels beside better ones" in said and "faults 0" in said
    made = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert sum(made["objects"].values()) == 6


def test_images_without_annotations_are_told(tmp_path, capsys):
    yolo(tmp_path / "lab")
    image(tmp_path / "lab" / "train" / "images" / "later.png")
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "left out 1 images that no annotation is for: train/images/later.png" in said


def test_masks_take_no_memory_by_what_they_claim(tmp_path, capsys):
    cvat(tmp_path / "lab")
    path = tmp_path / "lab" / "annotations.xml"
    text = path.read_text().replace('width="20" height="24" rle="0, 480"',
                                    'width="40000" height="40000" rle="0, 1600000000"')  # fmt: skip
    path.write_text(text)
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]) == 0
    assert "a mask is larger than its image" in capsys.readouterr().err
    fiftyone(tmp_path / "fifty")
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "|b1", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
    )
    claim = {"$binary": {"base64": base64.b64encode(zlib.compress(out.getvalue())).decode()}}
    path = tmp_path / "fifty" / "samples.json"
    content = json.loads(path.read_text())
    content["samples"][1]["ground_truth"]["detections"][0]["mask"] = claim
    write(path, content)
    main(["prepare", str(tmp_path / "fifty"), "--out", str(tmp_path / "out2")])
    assert "has a mask that is cut short" in capsys.readouterr().err


def test_axes_of_length_one_need_no_name(tmp_path):
    labels = np.zeros((1, 1, HEIGHT, WIDTH), np.uint32)
    labels[..., 12:36, 10:30] = 1
    for name in NAMES:
        image(tmp_path / "lab" / f"{name}.png")
        tifffile.imwrite(tmp_path / "lab" / f"{name}_Object Identities.tif", labels)
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]) == 0


def test_a_large_label_of_a_small_image_is_refused_by_its_header(tmp_path, capsys, monkeypatch):
    for name in NAMES:
        image(tmp_path / "lab" / "images" / f"{name}.png")
        labels = np.zeros((HEIGHT, WIDTH) if name != "b" else (3000, 3000), np.uint8)
        labels[12:36, 10:30] = 1
        palette(tmp_path / "lab" / "labels" / f"{name}.png", labels)
    read, seen = image_file.read_pages, []

    def noted(path, **options):
        seen.append(path.name)
        return read(path, **options)

    monkeypatch.setattr(image_file, "read_pages", noted)
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "has 3000x3000 pixels, its image" in said
    assert "b.png" not in seen and "a.png" in seen


@pytest.mark.parametrize("kind, flags, told", [
    ("labelme", ["--labels", "x", "--instances", "values", "--ignore", "3", "--axis", "coronal"],
     "--labels, --instances, --ignore, --axis have no effect on a source of the kind labelme"),
    ("labelme", ["--max-box-faults", "0.5"], ""),
    ("images", ["--images", "x", "--neighbours", "1", "--max-box-faults", "0.2"],
     "--images, --neighbours, --max-box-faults have no effect on a source of the kind images"),
    ("images", ["--ignore", "7", "--classes", "a"], ""),
])  # fmt: skip
def test_options_without_effect_are_told(tmp_path, capsys, kind, flags, told):
    (tmp_path / "x").mkdir()
    labelme(tmp_path / "lab")
    if kind == "images":
        for name in NAMES:
            (tmp_path / "lab" / f"{name}.json").unlink()
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[12:36, 10:30] = 1
            palette(tmp_path / "lab" / "labels" / f"{name}.png", labels)
    flags = [str(tmp_path / flag) if flag == "x" else flag for flag in flags]
    argv = ["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out"), *flags]
    assert main(argv) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert told in said and ("no effect" in said) == bool(told)


def palette(path, labels):
    picture = Image.new("P", labels.shape[::-1])
    picture.putdata(labels.ravel().tolist())
    picture.putpalette([(n * 37) % 256 for n in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.mark.parametrize("flags, objects", [
    ((), 2), (("--ignore", "none"), 3), (("--ignore", "2,255"), 1),
    (("--instances", "components"), 2),
])  # fmt: skip
def test_void_is_neither_object_nor_background(tmp_path, flags, objects):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[12:36, 10:30], labels[40:50, 40:60], labels[36:38, 10:30] = 1, 2, 255
    for name in NAMES:
        image(tmp_path / "lab" / "images" / f"{name}.png")
        palette(tmp_path / "lab" / "labels" / f"{name}.png", labels)
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(out), *flags, "--val", "0"]) == 0
    content = json.loads((out / "train.json").read_text())
    assert len(content["annotations"]) == 3 * objects
    for entry in content["images"]:
        if "none" in flags:
            assert "ignore" not in entry
        else:
            ignored = mask_util.decode(entry["ignore"]) > 0
            assert np.array_equal(ignored, np.isin(labels, (2, 255) if "2,255" in flags else 255))


@pytest.mark.parametrize("flags, objects", [((), 3), (("--background", "1"), 2)])
def test_label_images_without_a_0_may_name_their_background(tmp_path, capsys, flags, objects):
    labels = np.ones((HEIGHT, WIDTH), np.uint8)  # as ilastik numbers its labels
    labels[12:36, 10:30], labels[40:50, 40:60] = 2, 3
    for name in NAMES:
        image(tmp_path / "lab" / "images" / f"{name}.png")
        (tmp_path / "lab" / "labels").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "lab" / "labels" / f"{name}.png")
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(out), *flags, "--val", "0"]) == 0
    content = json.loads((out / "train.json").read_text())
    assert len(content["annotations"]) == 3 * objects
    said = " ".join(capsys.readouterr().out.split())
    assert ("name it: --background 1" in said) == (not flags)
    assert ("1 is background" in said) == bool(flags)


@pytest.mark.parametrize("values, flags, told", [
    ((1, 2, 255), [], True), ((1, 2, 255), ["--ignore", "none"], False),
    ((1, 2, 255), ["--ignore", "255"], False), ((127, 254, 255), [], False), ((1, 2, 3), [], False),
])  # fmt: skip
def test_a_value_far_above_the_others_is_told(tmp_path, capsys, values, flags, told):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, value in enumerate(values):
        labels[4 + 15 * number : 14 + 15 * number, 10:30] = value
    for name in NAMES:
        image(tmp_path / "lab" / "images" / f"{name}.png")
        (tmp_path / "lab" / "labels").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "lab" / "labels" / f"{name}.png")
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out"), *flags]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("name it: --ignore 255" in said) == told


def test_void_of_voc_in_colours(tmp_path):
    labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    labels[12:36, 10:30], labels[40:50, 40:60] = (128, 0, 0), (0, 128, 0)
    labels[36:38, 10:30] = 224, 224, 192
    for name in NAMES:
        image(tmp_path / "lab" / "images" / f"{name}.png")
        (tmp_path / "lab" / "labels").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "lab" / "labels" / f"{name}.png")
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(out), "--val", "0"]) == 0
    content = json.loads((out / "train.json").read_text())
    assert len(content["annotations"]) == 6
    assert all(mask_util.decode(entry["ignore"]).sum() == 40 for entry in content["images"])


def test_a_mask_of_0_and_255_is_no_void(tmp_path):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[12:36, 10:30] = 255
    for name in NAMES:
        image(tmp_path / "lab" / "images" / f"{name}.png")
        palette(tmp_path / "lab" / "labels" / f"{name}.png", labels)
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(out), "--val", "0"]) == 0
    assert len(json.loads((out / "train.json").read_text())["annotations"]) == 3


def test_empty_text_files_beside_label_images_are_no_yolo(tmp_path):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[12:36, 10:30] = 1
    for name in NAMES:
        image(tmp_path / "lab" / f"{name}.png")
        Image.fromarray(labels).save(tmp_path / "lab" / f"{name}_mask.png")
        (tmp_path / "lab" / f"{name}.txt").touch()
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]) == 0
    made = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert made["kind"] == "images"
