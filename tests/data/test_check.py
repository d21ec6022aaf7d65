"""Every bad image is named before the first step, quickly, and each file is checked once."""

import io
import time

import numpy as np
import pytest
import tifffile
from PIL import Image

from normdet.data import check
from normdet.data.check import check_images

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def record(path, height=40, width=60):
    return {"file_name": str(path), "height": height, "width": width}


def save(path, **options):
    Image.fromarray(PIXELS).save(path, **options)
    return record(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_a_file_that_is_cut_short_is_found_and_a_whole_one_is_not(tmp_path, suffix):
    whole = save(tmp_path / f"a.{suffix}")
    assert check_images([whole]) == []
    path = tmp_path / f"b.{suffix}"
    path.write_bytes((tmp_path / f"a.{suffix}").read_bytes()[:-200])
    (fault,) = check_images([whole, record(path)])
    assert f"b.{suffix}" in fault


def test_a_jpeg_with_something_behind_its_end_is_whole(tmp_path):
    save(tmp_path / "a.jpg")
    path = tmp_path / "b.jpg"
    path.write_bytes((tmp_path / "a.jpg").read_bytes() + b"trailer of a phone" * 9)
    assert check_images([record(path)]) == []


def test_the_end_of_a_thumbnail_is_not_taken_for_the_file_s(tmp_path):
    exif = Image.Exif()
    small = io.BytesIO()
    Image.fromarray(PIXELS[:9, :9]).save(small, "JPEG")
    exif[0x9286] = small.getvalue()
    save(tmp_path / "a.jpg", exif=exif)
    path = tmp_path / "a.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    assert len(check_images([record(path)])) == 1


def test_sizes_are_those_of_the_loader(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    save(tmp_path / "a.jpg", exif=exif)
    assert check_images([record(tmp_path / "a.jpg", 60, 40)]) == []
    (fault,) = check_images([record(tmp_path / "a.jpg")])
    assert "has 40x60 pixels as it is loaded" in fault and "for 60x40" in fault


def test_a_stack_is_no_image(tmp_path):
    stack = np.zeros((3, 40, 60), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    (fault,) = check_images([record(tmp_path / "a.tif")])
    assert "holds 3 planes" in fault


def test_a_checked_file_is_not_read_again_until_it_changes(tmp_path, monkeypatch, cache):
    records = [save(tmp_path / f"patient {n}.png") for n in range(3)]
    assert check_images(records) == []
    read = []
    whole = check.read_header
    monkeypatch.setattr(check, "read_header", lambda p, **o: read.append(p) or whole(p, **o))
    assert check_images(records) == [] and read == []
    (tmp_path / "patient 1.png").write_bytes(b"no image")
    assert len(check_images(records)) == 1
    assert [path.name for path in read] == ["patient 1.png"]
    # The cache holds no names.
    (file,) = cache.rglob("*.json")
    assert "patient" not in file.read_text() and "patient" not in file.name


def test_without_a_place_for_the_cache_all_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert check_images([save(tmp_path / "a.png")]) == []


def test_many_files_are_checked_without_decoding(tmp_path, monkeypatch):
    # This asserts the reason for its speed, not the time.
    records = [save(tmp_path / f"{n}.png") for n in range(50)]
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    start = time.perf_counter()
    assert check_images(records) == []
    print(f"{(time.perf_counter() - start) / 50 * 1e3:.2f} ms an image")
