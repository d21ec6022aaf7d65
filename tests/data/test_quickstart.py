"""The embedded nuclei: fetched once, whole or not at all, nothing in both parts."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from PIL import Image

from normdet.data import load_coco, quickstart
from normdet.errors import NormdetError


@pytest.fixture
def stand_in(monkeypatch):
    """Arrays in the wheel's place, and a pip that writes a wheel of them; counts its calls."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 236, (512, 512)).astype(np.uint16)
    mask = np.zeros((512, 512), np.uint16)
    for label, (y, x) in enumerate(np.mgrid[8:500:40, 8:500:40].reshape(2, -1).T, start=1):
        mask[y : y + 20, x : x + 14] = label
    calls = []

    def pip(command, **kwargs):
        calls.append(command)
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(_made(folder) / "stardist-0.9.2-any.whl", "w") as wheel:
            for name, array in zip(quickstart.FILES, (image, mask), strict=True):
                wheel.writestr(name, _tiff(array))
        return subprocess.CompletedProcess(command, 0, "", "")

    digests = {
        name: quickstart.hashlib.sha256(_tiff(array)).hexdigest()
        for name, array in zip(quickstart.FILES, (image, mask), strict=True)
    }
    monkeypatch.setattr(quickstart, "FILES", digests)
    monkeypatch.setattr(quickstart.subprocess, "run", pip)
    return image, mask, calls


def _made(folder):
    path = quickstart.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _tiff(array):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, datetime=False)
    return buffer.getvalue()


def test_tiles_hold_the_pixels_and_masks_of_their_place(stand_in, tmp_path):
    image, mask, _ = stand_in
    folder = quickstart.prepare(tmp_path / "quickstart")
    for part in ("train", "test"):
        dataset = load_coco(folder / f"{part}.json", folder / "images")
        assert not dataset.dropped and dataset.classes == ["nucleus"]
        for record in dataset.records:
            top, left = (int(v) for v in record["file_name"][:-4].split("_")[-2:])
            window = np.s_[top : top + record["height"], left : left + record["width"]]
            assert np.array_equal(np.asarray(Image.open(record["file_name"])), image[window])
            assert (left >= quickstart.SPLIT_COLUMN) == (part == "test")
            assert part == "test" or left + record["width"] <= quickstart.SPLIT_COLUMN
            union = sum(mask_util.decode(o["segmentation"]) for o in record["annotations"])
            sizes = {k: (mask[window] == k).sum() for k in np.unique(mask[window])}
            kept = [k for k in sizes if k and sizes[k] >= quickstart.MIN_PIXELS]
            assert np.array_equal(union, np.isin(mask[window], kept))


def test_it_is_made_once(stand_in, tmp_path):
    quickstart.prepare(tmp_path / "quickstart")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "quickstart").rglob("*")}
    quickstart.prepare(tmp_path / "quickstart")
    assert len(stand_in[2]) == 1
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "quickstart").rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart"]


def test_an_interrupted_run_leaves_nothing(stand_in, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart.json, "dumps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quickstart.prepare(tmp_path / "quickstart")
    assert list(tmp_path.iterdir()) == []


def test_another_file_under_the_same_name_is_refused(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "FILES", dict.fromkeys(quickstart.FILES, "0" * 64))
    with pytest.raises(NormdetError, match="not the known file"):
        quickstart.prepare(tmp_path / "quickstart")
    assert list(tmp_path.iterdir()) == []


def test_without_network_it_says_so_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        NormdetError, match=r"could not download stardist==0\.9\.2.*no network"
    ) as e:
        quickstart.prepare(tmp_path / "quickstart")
    assert "\n" not in str(e.value) and list(tmp_path.iterdir()) == []


def test_without_pip_it_says_so(tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(NormdetError, match=r"no pip in .*python.*No module named pip"):
        quickstart.prepare(tmp_path / "data" / "quickstart")


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "mine.txt").write_text("mine")
    with pytest.raises(NormdetError, match="holds no quickstart data"):
        quickstart.prepare(tmp_path / "quickstart")
    assert (tmp_path / "quickstart" / "mine.txt").read_text() == "mine"


def test_the_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMDET_DATA", str(tmp_path))
    assert quickstart.default_folder() == tmp_path / "quickstart"
    monkeypatch.delenv("NORMDET_DATA")
    assert quickstart.default_folder() == quickstart.Path("datasets/quickstart")


def test_the_real_image_has_its_nuclei(quickstart_data):
    counts = {}
    for part in ("train", "test"):
        content = json.loads((quickstart_data / f"{part}.json").read_text())
        counts[part] = (len(content["images"]), len(content["annotations"]))
    assert counts == {"train": (28, 279), "test": (2, 43)}
