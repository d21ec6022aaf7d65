"""Damaged and hostile files: a sentence or a result, from every reader, whatever byte is changed.

`NORMDET_FUZZ` says how many mutations a format is tried with; 100 by default, 1000 before a
release. The draws follow from the format's name and the number, so a failure repeats.
"""

import contextlib
import io
import json
import os
import pickle
import random
import resource
import time
import zlib

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from normdet.config import load_config
from normdet.data.coco import load_coco
from normdet.data.image_file import read_header, read_pages
from normdet.data.slices import MAX_PIXELS
from normdet.data.voc import load_voc
from normdet.errors import NormdetError
from normdet.medical.prepare.annotated import tool_stacks
from normdet.medical.prepare.cellpose import read_masks
from normdet.medical.prepare.formats import FORMATS
from normdet.medical.prepare.formats.base import Builder, Files
from normdet.medical.prepare.ilastik import read_labels
from normdet.medical.readers import find_sources, read_slices
from normdet.weights import load_file, save_file
from normdet.weights.importers import import_weights, unwrap
from tests.medical.prepare.make import blobs, dicom_image
from tests.medical.prepare.test_formats import EXPORTS

COUNT = int(os.environ.get("NORMDET_FUZZ", "100"))
# What no answer may take: seconds of a processor, and memory beyond what was held before.
SECONDS, BYTES = 20, 2 << 30

pytestmark = pytest.mark.slow

# What parsers trip over, put in at any place.
_TOKENS = (
    b"\x00", b"\xff" * 4, b"-1", b"1e999", b"NaN", b"null", b"{}", b"[]", b'""', b"0", b"9" * 30,
    b"<", b"&a;", b"../", b"\xed\xa0\x80", b"[" * 2000, b"true", b"\n",
    b"!!python/object:os.system",
)  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A flipped bit, another byte, a token put in or over, a part gone, twice, or the end cut."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        place = draw.randrange(len(data)) if data else 0
        length = min(draw.choice((1, 2, 4, 40)), len(data) - place)
        kind = draw.randrange(7)
        if kind == 0 and data:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1 and data:
            data[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif kind == 2:
            data[place:place] = draw.choice(_TOKENS)
        elif kind == 3:
            token = draw.choice(_TOKENS)
            data[place : place + len(token)] = token
        elif kind == 4:
            del data[place : place + length]
        elif kind == 5:
            data[place:place] = data[place : place + length]
        else:
            del data[place:]
    return bytes(data)


def retyped(content: object, draw: random.Random) -> object:
    """JSON's values with some replaced by others: what flipped bits seldom reach."""
    odd = (None, -1, 0, 1e308, float("nan"), "", "x", [], {}, True, [[]], 10**40, "\ud800", "../a")
    if draw.random() < 0.03:
        return draw.choice(odd)
    if isinstance(content, dict):
        return {k: retyped(v, draw) for k, v in content.items() if draw.random() > 0.01}
    if isinstance(content, list):
        return [retyped(one, draw) for one in content]
    return content


# Weights ------------------------------------------------------------------------------------------


def weights(folder, suffix, write):
    state = {f"res{i}.conv{i}.weight": torch.randn(3, 2, 3, 3) for i in range(4)}
    write(state, folder / f"w{suffix}")
    return [folder / f"w{suffix}"]


def read_weights(folder):
    for path in folder.glob("w*"):
        checkpoint = unwrap(load_file(path), str(path))
        import_weights(checkpoint, str(path))


def legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def pickled(state, path):
    arrays = {name: value.numpy() for name, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, 2))


def plain_safetensors(state, path):
    import safetensors.torch

    safetensors.torch.save_file(state, path)


# Images -------------------------------------------------------------------------------------------


def image(folder, suffix, **options):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"a{suffix}", **options)
    return [folder / f"a{suffix}"]


def deep_tiff(folder):
    import tifffile

    pixels = np.random.default_rng(0).integers(0, 4000, (2, 3, 24, 20), dtype=np.uint16)
    tifffile.imwrite(folder / "a.tif", pixels, imagej=True, metadata={"axes": "ZCYX"})
    return [folder / "a.tif"]


def read_images(folder):
    for path in folder.iterdir():
        for labels in (False, True):
            read_header(path, labels=labels)
            read_pages(path, max_pixels=MAX_PIXELS, labels=labels)


def nifti(folder, suffix):
    import nibabel

    volume = np.random.default_rng(0).integers(-99, 99, (8, 9, 7), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 2, 3, 1])), folder / f"a{suffix}")
    return [folder / f"a{suffix}"]


def dicom(folder):
    case = blobs(0, size=64, count=2)
    for number in range(2):
        data = dicom_image(case, number, series="1.2.3")
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return [folder / "1.dcm"]


def cellpose(folder):
    labels = np.zeros((24, 20), np.uint16)
    labels[2:9, 3:11] = 1
    content = {"masks": labels, "filename": "a.png", "flows": [labels[None]], "diameter": 3.5}
    np.save(folder / "a_seg.npy", content, allow_pickle=True)
    return [folder / "a_seg.npy"]


def ilastik(folder):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "a.h5", "w") as file:
        labels = np.ones((1, 24, 20, 1), np.uint8)
        file.create_dataset("exported_data", data=labels, chunks=(1, 8, 8, 1), compression="gzip")
    return [folder / "a.h5"]


def read_series(folder):
    # As prepare does: a bad file is a fault, and the others go on.
    with contextlib.redirect_stderr(io.StringIO()):
        for source in find_sources(folder, report=lambda sentence: None):
            list(read_slices(source, report=lambda sentence: None))


# Annotations --------------------------------------------------------------------------------------


def coco(folder):
    (folder / "images").mkdir()
    image(folder / "images", ".png")
    polygon = [[2.0, 2.0, 12.0, 2.0, 12.0, 14.0, 2.0, 14.0]]
    runs = {"size": [24, 20], "counts": [50, 6, 18, 6, 400]}
    shapes = [polygon, runs, {"size": [24, 20], "counts": "b15d0O1OO1O1"}]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "iscrowd": int(n > 1), "area": 120.0,
         "bbox": [2.0, 2.0, 10.0, 12.0], "segmentation": shape}
        for n, shape in enumerate(shapes, start=1)
    ]  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 24, "width": 20}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return [folder / "coco.json"]


def read_coco(folder):
    load_coco(folder / "coco.json", folder / "images", lambda sentence: None)


def voc(folder):
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    image(folder / "JPEGImages", ".png")
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax><ymax>14</ymax></bndbox>"
    (folder / "Annotations/a.xml").write_text(
        "<?xml version='1.0'?><annotation><size><width>20</width><height>24</height></size>"
        f"<object><name>cell</name><difficult>0</difficult>{box}</object></annotation>"
    )
    (folder / "ImageSets/Main/train.txt").write_text("a\n")
    return [folder / "Annotations/a.xml", folder / "ImageSets/Main/train.txt"]


def read_voc(folder):
    load_voc(folder, "train", lambda sentence: None)


def tool(folder, name):
    EXPORTS[name][0](folder)
    endings = (".json", ".geojson", ".ndjson", ".jsonl", ".manifest", ".xml", ".txt", ".csv",
               ".yaml", ".names", "___save.png")  # fmt: skip
    return [path for path in sorted(folder.rglob("*")) if path.name.endswith(endings)]


def read_tool(folder, name):
    form, builder = FORMATS[EXPORTS[name][1]], Builder(folder, lambda sentence: None)
    files = form.find(Files(folder))
    list(tool_stacks(form, files, builder, None, lambda sentence: None, []))


def config(folder):
    content = {"VERSION": 2, "SOLVER": {"MAX_ITER": 5, "STEPS": [1, 2]},
               "MODEL": {"MASK_ON": True, "RESNETS": {"NORM": "GN"}}, "SEED": 1}  # fmt: skip
    (folder / "a.yaml").write_text(yaml.safe_dump(content))
    return [folder / "a.yaml"]


CASES = {
    "own.pth": (lambda f: weights(f, ".pth", save_file), read_weights),
    "own.safetensors": (lambda f: weights(f, ".safetensors", save_file), read_weights),
    "zip.pth": (lambda f: weights(f, ".pth", torch.save), read_weights),
    "legacy.pth": (lambda f: weights(f, ".pth", legacy), read_weights),
    "pkl": (lambda f: weights(f, ".pkl", pickled), read_weights),
    "safetensors": (lambda f: weights(f, ".safetensors", plain_safetensors), read_weights),
    "png": (lambda f: image(f, ".png"), read_images),
    "jpeg": (lambda f: image(f, ".jpg"), read_images),
    "bmp": (lambda f: image(f, ".bmp"), read_images),
    "webp": (lambda f: image(f, ".webp"), read_images),
    "tiff": (lambda f: image(f, ".tif", compression="tiff_adobe_deflate"), read_images),
    "tiff lzw": (lambda f: image(f, ".tif", compression="tiff_lzw"), read_images),
    "tiff imagej": (deep_tiff, read_images),
    "nifti": (lambda f: nifti(f, ".nii"), read_series),
    "nifti gz": (lambda f: nifti(f, ".nii.gz"), read_series),
    "dicom": (dicom, read_series),
    "cellpose": (cellpose, lambda f: read_masks(f / "a_seg.npy", MAX_PIXELS)),
    "ilastik": (ilastik, lambda f: read_labels(f / "a.h5", MAX_PIXELS)),
    "coco": (coco, read_coco),
    "voc": (voc, read_voc),
    "yaml": (config, lambda f: load_config(f / "a.yaml")),
    **{
        name: (lambda f, n=name: tool(f, n), lambda f, n=name: read_tool(f, n))
        for name in EXPORTS
        if EXPORTS[name][1] in FORMATS
    },
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_damage_is_a_sentence_or_a_result(tmp_path, name):
    if name in ("nifti", "nifti gz"):
        pytest.importorskip("nibabel")
    make, read = CASES[name]
    files = make(tmp_path)
    read(tmp_path)
    whole = {path: path.read_bytes() for path in files}
    # A kill for a gigabyte more than allowed would be of the whole run: the system refuses it.
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, before[1]))
    try:
        for number in range(COUNT):
            draw = random.Random(zlib.crc32(f"{name} {number}".encode()))
            path = draw.choice(files)
            path.write_bytes(_harmed(path, whole[path], draw))
            begun = time.process_time()
            try:
                read(tmp_path)
            except NormdetError as error:
                assert str(error).strip(), number
            except MemoryError as error:
                raise AssertionError(f"mutation {number} of {path.name} asks for 2 GB") from error
            except Exception as error:
                raise AssertionError(f"mutation {number} of {path.name}") from error
            assert time.process_time() - begun < SECONDS, f"mutation {number} of {path.name}"
            path.write_bytes(whole[path])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _harmed(path, content: bytes, draw: random.Random) -> bytes:
    if path.suffix in (".json", ".geojson") and draw.random() < 0.5:
        return json.dumps(retyped(json.loads(content), draw)).encode("utf-8", "surrogatepass")
    return mutated(content, draw)
