"""normdet predict with a detector whose results are known: files, resuming, faults."""

import csv
import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools.coco import COCO

from normdet import cli
from normdet.data.input_record import window_of
from normdet.errors import NormdetError
from normdet.files.atomic import TEMPORARY_SUFFIX
from normdet.medical.predict import command
from normdet.medical.readers import find_sources
from tests.medical.predict.fake import Seer, run


def scene(height=60, width=80, values=(10, 21, 32)) -> np.ndarray:
    """Squares of 12 pixels with different grey values."""
    image = np.zeros((height, width), np.uint8)
    for place, value in enumerate(values):
        y, x = divmod(place * 16, width - 16)
        image[y * 16 + 2 : y * 16 + 14, x + 2 : x + 14] = value
    return image


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(scene()).save(folder / "b.png")
    Image.fromarray(scene(40, 100, (5,))).save(folder / "зерно №1.png")
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(folder / "empty.png")
    return folder


def rows(file):
    return list(csv.DictReader(file.open(encoding="utf-8")))


def test_every_file_has_the_same_objects(images, tmp_path, capsys):
    out = tmp_path / "out"
    code, _ = run(images, out)
    assert code == 0
    assert "3 images: 2 odd one, 2 even" in capsys.readouterr().out
    coco = COCO(str(out / "images.json"))
    results = coco.loadRes(str(out / "predictions.json"))
    names = {image["name"]: image for image in coco.dataset["images"]}
    assert set(names) == {"b", "зерно_1", "empty"}
    truth = scene()
    b = results.loadAnns(results.getAnnIds(imgIds=[names["b"]["id"]]))
    assert [round(entry["score"] * 1000 - 500) for entry in b] == [32, 21, 10]
    # The second class of the model is "even", whose id in the annotation file is 3.
    assert [entry["category_id"] for entry in b] == [7, 3, 7]
    for entry in b:
        assert np.array_equal(results.annToMask(entry), truth == round(entry["score"] * 1000 - 500))
        assert entry["area"] == 144
    labels = tifffile.imread(out / "labels" / "b.tif")
    assert np.array_equal(labels, np.select([truth == v for v in (32, 21, 10)], [1, 2, 3]))
    assert labels.dtype == np.uint16
    assert tifffile.imread(out / "labels" / "empty.tif").max() == 0
    assert Image.open(out / "overlays" / "зерно_1.png").width == 800
    counts = {row["image"]: row for row in rows(out / "counts.csv")}
    assert counts["b"] | {"count odd one": "2", "count even": "1", "median area px": "144",
                          "total area px": "432", "mean score": "0.521"} == counts["b"]
    assert counts["b"]["total area mm2"] == ""
    assert counts["empty"]["objects"] == "0" and counts["empty"]["mean score"] == ""
    objects = rows(out / "objects.csv")
    assert [row["label"] for row in objects if row["image"] == "b"] == ["1", "2", "3"]


@pytest.mark.parametrize("batch", [1, 3])
def test_objects_across_tiles_count_once_and_are_whole(tmp_path, batch):
    image = np.zeros((200, 230), np.uint8)
    image[20:180, 90:110] = 11  # through all rows of tiles
    image[88:112, 30:70] = 22
    image[60:70, 190:229] = 33
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "large.tif", image)
    _, model = run(tmp_path / "in", tmp_path / "out", "--tile", "100", "--overlap", "30",
                   "--batch", str(batch))
    assert [len(call) for call in model.seen][:-1] == [batch] * (len(model.seen) - 1)
    labels = tifffile.imread(tmp_path / "out" / "labels" / "large.tif")
    assert np.array_equal(labels, np.select([image == v for v in (33, 22, 11)], [1, 2, 3]))
    assert rows(tmp_path / "out" / "counts.csv")[0]["objects"] == "3"


def test_boxes_without_masks_have_no_label_images(images, tmp_path):
    run(images, tmp_path / "out", masks=False)
    assert not (tmp_path / "out" / "labels").exists()
    entry = json.loads((tmp_path / "out" / "predictions.json").read_text())[0]
    assert "segmentation" not in entry and entry["area"] == 144


def test_a_killed_run_leaves_whole_files_and_the_same_command_goes_on(
    images, tmp_path
):
    out = tmp_path / "out"

    class Killed(Exception):
        pass

    class Dying(Seer):
        def __call__(self, inputs):
            if len(self.seen) == 2:
                raise Killed
            return super().__call__(inputs)

    with pytest.raises(Killed):
        run(images, out, model=Dying())
    done = sorted(path.stem for path in (out / "records").iterdir())
    assert len(done) == 2
    assert sorted(p.stem for p in (out / "labels").iterdir()) == done
    # A kill in the middle of a write leaves a hidden file that is cleared away.
    half = out / "labels" / f".c.tif.123{TEMPORARY_SUFFIX}"
    half.write_bytes(b"half")
    code, model = run(images, out)
    assert code == 0 and len(model.seen) == 1
    assert len(rows(out / "counts.csv")) == 3
    assert not half.exists()
    code, model = run(images, out)
    assert code == 0 and not model.seen


def test_an_interrupted_run_says_that_it_can_go_on(images, tmp_path, monkeypatch, capsys):
    class Stopped(Seer):
        def __call__(self, inputs):
            if self.seen:
                raise KeyboardInterrupt
            return super().__call__(inputs)

    out = tmp_path / "out"
    main = "normdet.medical.predict.main"
    monkeypatch.setattr(main, lambda argv: run(images, out, model=Stopped()))
    assert cli.main(["predict"]) == 130
    assert "stopped after 1 images; the same command goes on" in capsys.readouterr().err
    again = ["--restart"]
    monkeypatch.setattr(
        "normdet.medical.predict.main", lambda argv: run(images, out, *again, model=Stopped())
    )
    assert cli.main(["predict"]) == 130
    assert "the same command, without --restart, goes on" in capsys.readouterr().err


def test_a_file_that_vanishes_is_a_fault(images, tmp_path, monkeypatch, capsys):
    class Remover(Seer):
        def __call__(self, inputs):
            (images / "empty.png").unlink(missing_ok=True)
            return super().__call__(inputs)

    code, _ = run(images, tmp_path / "out", model=Remover())
    assert code == 1 and "empty.png cannot be read: No such file" in capsys.readouterr().err


def test_files_of_an_earlier_run_among_the_images_are_not_predicted(images, tmp_path):
    for _ in range(2):
        run(images, images / "found")
        assert len(rows(images / "found" / "counts.csv")) == 3
    with pytest.raises(NormdetError, match="no images but those that are in --out"):
        run(images / "found" / "labels", images / "found")


def test_equal_names_and_files_named_twice_count_once_each(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for place, name in enumerate(("a.png", "a.tif", "a_2.png"), start=1):
        Image.fromarray(scene(values=(10,) * place)).save(folder / name)
    for _ in range(2):
        assert run(folder, tmp_path / "out")[0] == 0
        counts = {row["image"]: row["objects"] for row in rows(tmp_path / "out" / "counts.csv")}
        assert sorted(counts) == ["a", "a_2", "a_2_2"]
    sources = find_sources([folder / "a.png", folder])
    assert [source.paths[0].name for source in sources] == ["a.png", "a.tif", "a_2.png"]


def test_images_that_prepare_wrote_are_through_their_window(images, tmp_path):
    assert window_of(images / "b.png", "CT:40,400") == "CT:40,400"
    (tmp_path / "fingerprint.json").write_text("{}")
    assert window_of(images / "b.png", "CT:40,400") == "none"
    _, model = run(images, tmp_path / "out", trained="CT:40,400")
    assert sorted(call[0]["image"].max().item() for call in model.seen) == [0, 5, 32]


def test_one_command_at_a_time(images, tmp_path):
    class Second(Seer):
        def __call__(self, inputs):
            with pytest.raises(NormdetError, match="another `normdet predict` is at work"):
                run(images, tmp_path / "out")
            return super().__call__(inputs)

    assert run(images, tmp_path / "out", model=Second())[0] == 0


def test_an_image_that_changed_is_predicted_again(images, tmp_path):
    run(images, tmp_path / "out")
    Image.fromarray(scene(60, 80, (40,))).save(images / "b.png")
    _, model = run(images, tmp_path / "out")
    assert len(model.seen) == 1
    counts = {row["image"]: row["objects"] for row in rows(tmp_path / "out" / "counts.csv")}
    assert counts == {"b": "1", "empty": "0", "зерно_1": "1"}


def test_other_settings_are_not_mixed_into_a_folder(images, tmp_path):
    run(images, tmp_path / "out")
    with pytest.raises(NormdetError, match=r"score threshold was 0.5 and is 0.52.*--restart"):
        run(images, tmp_path / "out", "--score-threshold", "0.52")
    with pytest.raises(NormdetError, match="config was"):
        run(images, tmp_path / "out", opts=["MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.1])
    (tmp_path / "out" / "mine.txt").write_text("kept")
    run(images, tmp_path / "out", "--score-threshold", "0.52", "--restart")
    objects = rows(tmp_path / "out" / "objects.csv")
    assert [row["score"] for row in objects] == ["0.532", "0.521"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_a_broken_image_is_named_and_skipped_or_stops(images, tmp_path, capsys):
    (images / "a.png").write_bytes((images / "b.png").read_bytes()[:60])
    code, _ = run(images, tmp_path / "skip")
    captured = capsys.readouterr()
    assert code == 1
    assert "a.png cannot be read" in captured.err and "skipped over 1 fault," in captured.out
    assert len(rows(tmp_path / "skip" / "counts.csv")) == 3
    with pytest.raises(NormdetError, match=r"a\.png cannot be read"):
        run(images, tmp_path / "stop", "--on-error", "stop")


def test_sixteen_bits_are_windowed_as_asked_and_a_stack_by_one_window(tmp_path):
    (tmp_path / "in").mkdir()
    stack = np.stack([scene(), scene() * 2]).astype(np.uint16) * 100
    tifffile.imwrite(tmp_path / "in" / "deep.tif", stack, photometric="minisblack")
    _, model = run(tmp_path / "in", tmp_path / "out", "--window", "CT:6400,12800")
    first, second = (call[0]["image"] for call in model.seen)
    assert first.shape == (3, 60, 80) and first[0].unique().tolist() == [0, 20, 42, 64]
    assert second[0].unique().tolist() == [0, 40, 84, 128]
    # Without a window the model gets what the file holds.
    _, model = run(tmp_path / "in", tmp_path / "raw", "--window", "none")
    assert model.seen[0][0]["image"][0].max() == 3200


def test_spacing_gives_areas_in_mm2_and_dpi(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = np.stack([scene().T[:, ::-1]] * 2, axis=-1)
    nibabel.save(
        nibabel.Nifti1Image(volume, np.diag([0.5, 0.25, 2, 1.0])), tmp_path / "scan.nii.gz"
    )
    run(tmp_path / "scan.nii.gz", tmp_path / "out")
    counts = rows(tmp_path / "out" / "counts.csv")
    assert [row["image"] for row in counts] == ["scan_0000", "scan_0001"]
    assert float(counts[0]["mean area mm2"]) == pytest.approx(144 * 0.5 * 0.25)
    with tifffile.TiffFile(tmp_path / "out" / "labels" / "scan_0000.tif") as file:
        assert file.pages[0].tags["XResolution"].value[0] / file.pages[0].tags[
            "XResolution"
        ].value[1] == pytest.approx(20)
    # All of a volume was there: nothing is predicted again.
    _, model = run(tmp_path / "scan.nii.gz", tmp_path / "out")
    assert not model.seen


def test_a_model_of_one_channel_sees_one(images, tmp_path):
    Image.fromarray(np.stack([scene()] * 3, -1)).save(images / "colour.png")
    _, model = run(images, tmp_path / "out", opts=("INPUT.FORMAT", "L"))
    assert {tuple(call[0]["image"].shape) for call in model.seen} == {
        (1, 60, 80), (1, 40, 100), (1, 30, 30)
    }  # fmt: skip


def test_an_image_too_large_to_take_whole_names_the_way_out(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "MAX_WHOLE", 4500)
    code, _ = run(images, tmp_path / "out")
    assert code == 1
    said = capsys.readouterr().err
    assert "b.png has 80x60 pixels" in said and "give --tile 512" in said
    code, _ = run(images, tmp_path / "tiled", "--tile", "64", "--overlap", "16")
    assert code == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--weights", "nowhere/model.pth"], "has no config.yaml beside it"),
        (["--weights", "x.pth", "--config-file", "quickstart/gn.yaml", "--tile", "9"], "overlap"),
        (["--weights", "x.pth", "--config-file", "quickstart/gn.yaml", "--window", "ct"], "window"),
        (["--weights", "x.pth", "--config-file", "quickstart/gn.yaml", "--classes", "a,b"],
         "names 2 classes, the model has 1"),
        (["--weights", "x.pth", "--config-file", "quickstart/gn.yaml"], "x.pth does not exist"),
        (["--weights", "x.pth", "--batch", "0"], "--batch"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(flags, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["predict", str(tmp_path), "--out", str(out), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
