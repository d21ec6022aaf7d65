"""`normdet doctor` from the command line: real images, its files, and refusals."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from normdet.cli import main
from normdet.config import load_config
from normdet.data.images import Images, find_images, sample
from normdet.weights import save_file


def run(config, weights, *words) -> int:
    model = ["--config-file", str(config), "--weights", str(weights)]
    return main(["doctor", *model, *map(str, words)])


@pytest.mark.slow
def test_it_prints_a_verdict_and_leaves_a_page_a_picture_and_numbers(
    config, weights, folder, tmp_path, capsys
):
    assert run(config, weights, folder, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "8 images: " in printed and "next:\n  normdet " in printed
    content = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert [row["name"] for row in content["stages"]] == ["stem", "res2", "res3", "res4", "res5"]
    assert content["images"] == 8 and content["verdict"] in printed
    # Trained on one padded batch and measured one by one, statistics differ by the padding alone.
    assert all(row["distance"] < 0.5 for row in content["stages"])
    page = (tmp_path / "out" / "doctor.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page
    assert content["verdict"][1:] in page.replace("&#x27;", "'")
    with Image.open(tmp_path / "out" / "doctor.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


@pytest.mark.slow
def test_frozen_and_trained_batch_norm_agree(config, weights, folder, tmp_path):
    for norm in ("BN", "FrozenBN"):
        opts = ["MODEL.RESNETS.NORM", norm]
        assert run(config, weights, folder, "--out", tmp_path / norm, *opts) == 0
    one, other = (
        json.loads((tmp_path / norm / "doctor.json").read_text())["layers"]
        for norm in ("BN", "FrozenBN")
    )
    for key in ("distance", "shift", "variance_ratio", "dead"):
        ours, theirs = (
            {row["name"]: row[key] for row in rows if row[key] is not None} for rows in (one, other)
        )
        assert ours and ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_unreadable_images_are_named_and_left_out(config, weights, folder, tmp_path, capsys):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "broken.png").write_bytes(b"\x89PNG no more")
    (bad / "deep.tif").write_bytes(b"II*\0 no more")
    assert run(config, weights, folder, bad, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "left out 2 of 10 images" in printed and "broken.png" in printed
    assert "deep.tif holds no image" in printed and "8 images: " in printed
    assert run(config, weights, bad, "--out", tmp_path / "out") == 2
    assert "none of the 2 images can be read" in capsys.readouterr().err


def refusal(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    return next(line for line in lines if line.startswith("normdet: error: "))


def test_bad_input_is_a_sentence(config, weights, folder, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, said in (
        ([], "no images"),
        ([empty], "no images in"),
        ([tmp_path / "absent"], "does not exist"),
        (["--dataset", "nowhere"], "neither a dataset registered"),
        (["--dataset", "nowhere", folder], "not both"),
        ([folder, "--max-images", "0"], "--max-images 0: at least one"),
        ([folder, "MODEL.RESNETS.NORM", "GN"], "nothing to examine"),
        ([folder, "MODEL.RESNETS.NORM", "GN"], "no norm of this model (it has GN)"),
        ([folder, "NO.SUCH", "1"], "KEY VALUE pairs"),
    ):
        assert run(config, weights, *words, *out) == 2, words
        assert said in refusal(capsys)
    assert main(["doctor", str(folder)]) == 2
    assert "--config-file and --weights are needed" in refusal(capsys)
    assert run(config, tmp_path / "none.pth", folder, *out) == 2
    assert "does not exist" in refusal(capsys)


def test_untrained_statistics_are_recognized(config, folder, tmp_path, capsys):
    from detectron2.modeling import build_model

    path = tmp_path / "start.pth"
    save_file({"model": build_model(load_config(config)).state_dict()}, path)
    assert run(config, path, folder, "--out", tmp_path / "out") == 2
    assert "never trained" in refusal(capsys)


def test_images_are_resized_as_in_a_test_and_never_padded(config, folder):
    cfg = load_config(config)
    for batch in Images(find_images([folder]), cfg, 32):
        height, width = batch[0]["image"].shape[1:]
        assert (height, width) == (64, 64)  # of 64 x 78 to 82
    files = find_images([folder])
    assert len(files) == 8 and files == sorted(files)
    assert len(set(sample(files, 3))) == 3 and sample(files, 99) == files


@pytest.mark.slow
def test_a_dataset_names_the_images(config, weights, folder, tmp_path, capsys):
    annotations = {
        "images": [
            {"id": i, "file_name": f"ä {i}.png", "width": 90, "height": 70 + i} for i in range(5)
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],  # not the model's one
    }
    (folder / "a.json").write_text(json.dumps(annotations))
    name = "coco:a.json:."
    opts = ["DATASETS.ROOT", folder]
    assert run(config, weights, "--dataset", name, "--out", tmp_path / "out", *opts) == 0
    printed = capsys.readouterr().out
    assert "5 images: " in printed


@pytest.mark.slow
def test_photographs_are_nearer_to_imagenet_than_cells_and_nuclei(real_data, tmp_path):
    distances = {}
    for name in ("coco/val2017", "bccd/JPEGImages", "nuclei/images"):
        out = tmp_path / name
        weights = real_data / "weights/resnet50-imagenet.pth"
        words = [real_data / name, "--out", out, "--max-images", "16", "INPUT.MIN_SIZE_TEST", "224"]
        assert run("coco/mask_rcnn_R_50_FPN_1x.yaml", weights, *words) == 0
        content = json.loads((out / "doctor.json").read_text())
        distances[name] = {row["name"]: row["distance"] for row in content["stages"]}
        levels = {row["level"] for row in content["stages"]}
        if name.startswith("coco"):
            assert levels == {"fits"} and "keep it" in content["verdict"]
        else:
            assert "off" in levels and "learnable norm is worth it" in content["verdict"]
    near, cells, nuclei = distances.values()
    for stage, distance in near.items():
        assert 2 * distance < min(cells[stage], nuclei[stage])


@pytest.mark.slow
def test_names_of_images_become_numbers(config, weights, folder, tmp_path, capfd):
    images, out = tmp_path / "Zaphod images", tmp_path / "out"
    shutil.copytree(folder, images)
    (images / "Zaphod 1.png").write_bytes(b"broken")
    assert run(config, weights, images, "--out", out, "--anonymize") == 0
    printed = "".join(capfd.readouterr())
    assert "left out 1 of 9 images: file " in printed and "Zaphod" not in printed
    assert "Zaphod 1.png" in (tmp_path / "out-names.csv").read_text()
    for path in out.iterdir():
        assert b"Zaphod" not in path.read_bytes(), path
