"""Datasets by their text in the config."""

import json
import shutil

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from PIL import Image

import normdet
from normdet.data import build_mapper, image_files, register_datasets
from normdet.data.augmentation import RandomD4
from normdet.errors import NormdetError


@pytest.fixture
def cfg():
    """A box detector of one class; datasets that the test registers are removed after it."""
    cfg = get_cfg()
    normdet.add_normdet_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.DATASETS.TEST = ()
    known = DatasetCatalog.list()
    yield cfg
    for name in set(DatasetCatalog.list()) - set(known):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def test_nuclei_by_their_text(cfg, real_data):
    cfg.DATASETS.ROOT = str(real_data)
    text = "coco:nuclei/val.json:nuclei/images"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (text,), (text,)
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    register_datasets(cfg)
    register_datasets(cfg)
    assert len(DatasetCatalog.get(text)) == 80
    metadata = MetadataCatalog.get(text)
    assert metadata.thing_classes == ["nucleus"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0}
    assert metadata.get("json_file") is None  # evaluation numbers the records itself


def test_blood_cells_by_root_or_by_path(cfg, real_data):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.DATASETS.TRAIN = (f"voc:{real_data}/bccd/val",)
    register_datasets(cfg)
    cfg.DATASETS.ROOT, cfg.DATASETS.TEST = str(real_data / "bccd"), ("voc:val",)
    register_datasets(cfg)
    by_path, by_root = DatasetCatalog.get(cfg.DATASETS.TRAIN[0]), DatasetCatalog.get("voc:val")
    assert by_path == by_root and len(by_root) == 87
    assert MetadataCatalog.get("voc:val").get("json_file") is None


def test_the_same_text_under_another_root_is_another_dataset(cfg, real_data, tmp_path):
    (tmp_path / "nuclei").mkdir()
    content = json.loads((real_data / "nuclei/val.json").read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (tmp_path / "nuclei/val.json").write_text(json.dumps(content))
    (tmp_path / "nuclei/images").symlink_to(real_data / "nuclei/images")
    cfg.DATASETS.TRAIN = ("coco:nuclei/val.json:nuclei/images",)
    for root, images in ((real_data, 80), (tmp_path, 2)):
        cfg.DATASETS.ROOT = str(root)
        register_datasets(cfg)
        assert len(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])) == images


def test_quickstart_trains_under_its_symmetries(cfg, quickstart_data):
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("quickstart:train",), ("quickstart:test",)
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_D4 = (256,), True
    register_datasets(cfg)
    mapper = build_mapper(cfg, True)
    assert isinstance(mapper.augmentations.augs[-1], RandomD4)
    batch = next(iter(build_detection_train_loader(cfg, mapper=mapper)))
    for image in batch:
        masks = image["instances"].gt_masks
        boxes = image["instances"].gt_boxes.tensor
        assert image["image"].shape == (3, 256, 256) and len(boxes)
        # A doubled mask and its doubled box differ by the rounding of edges alone.
        assert (masks.get_bounding_boxes().tensor - boxes).abs().max() <= 1


def test_without_the_key_the_augmentations_are_detectron2s(cfg):
    assert not any(isinstance(a, RandomD4) for a in build_mapper(cfg, True).augmentations.augs)
    cfg.INPUT.RANDOM_D4 = True
    assert not any(isinstance(a, RandomD4) for a in build_mapper(cfg, False).augmentations.augs)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("nuclei", "DATASETS.TRAIN names 'nuclei', which is neither .* nor one of coco:"),
        ("coco:a.json", "should read coco:ANNOTATIONS.json:IMAGE_DIR"),
        ("coco:gone.json:images", "gone.json does not exist"),
        ("voc:", "should read voc:IMAGESET"),
        ("quickstart:val", "should read quickstart:train or :test"),
    ],
)
def test_names_that_are_no_dataset_are_refused(cfg, name, sentence):
    cfg.DATASETS.TRAIN = (name,)
    with pytest.raises(NormdetError, match=sentence):
        register_datasets(cfg)


def test_a_known_dataset_without_its_files_says_where_they_belong(cfg, tmp_path):
    cfg.DATASETS.TRAIN = ("here_without_files",)
    DatasetCatalog.register("here_without_files", list)
    MetadataCatalog.get("here_without_files").json_file = str(tmp_path / "gone.json")
    with pytest.raises(NormdetError, match=r"needs .*gone\.json.*DETECTRON2_DATASETS"):
        register_datasets(cfg)


def test_a_model_that_does_not_fit_the_data_is_refused(cfg, real_data):
    cfg.DATASETS.ROOT = str(real_data)
    cfg.DATASETS.TRAIN = ("voc:bccd/val",)
    with pytest.raises(
        NormdetError, match=r"ROI_HEADS\.NUM_CLASSES is 1, .* has 3 classes: Platelets"
    ):
        register_datasets(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    with pytest.raises(NormdetError, match=r"RETINANET\.NUM_CLASSES is 80"):
        register_datasets(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "GeneralizedRCNN", 3
    cfg.MODEL.MASK_ON = True
    with pytest.raises(NormdetError, match=r"MASK_ON is True, but .* has boxes without a mask"):
        register_datasets(cfg)
    cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES = ("coco:nuclei/val.json:nuclei/images",), 1
    with pytest.raises(NormdetError, match=r"set INPUT\.MASK_FORMAT to 'bitmask'"):
        register_datasets(cfg)


def test_data_without_a_box_cannot_train_but_can_test(cfg, real_data, tmp_path):
    content = json.loads((real_data / "nuclei/val.json").read_text())
    content["images"], content["annotations"] = content["images"][:1], []
    (tmp_path / "none.json").write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    name = content["images"][0]["file_name"]
    shutil.copy(real_data / "nuclei/images" / name, tmp_path / "images" / name)
    cfg.DATASETS.ROOT = str(tmp_path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("coco:none.json:images",)
    register_datasets(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST
    with pytest.raises(NormdetError, match="holds no box to train on"):
        register_datasets(cfg)


def test_crowd_regions_may_be_rle_among_polygons(cfg, real_data, tmp_path):
    content = json.loads((real_data / "coco/annotations/instances_val2017.json").read_text())
    image, annotation = content["images"][0], content["annotations"][0]
    size = [image["height"], image["width"]]
    rle = {"size": size, "counts": [10, 20, size[0] * size[1] - 30]}
    crowd = {**annotation, "id": 10**12, "image_id": image["id"], "iscrowd": 1, "segmentation": rle}
    content["annotations"].append(crowd)
    (tmp_path / "crowd.json").write_text(json.dumps(content))
    cfg.DATASETS.TRAIN = (f"coco:{tmp_path}/crowd.json:{real_data}/coco/val2017",)
    cfg.MODEL.MASK_ON, cfg.MODEL.ROI_HEADS.NUM_CLASSES = True, 80
    register_datasets(cfg)
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    assert sum(obj["iscrowd"] for record in records for obj in record["annotations"]) == 1


def test_the_images_of_a_dataset_do_not_depend_on_the_model(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "annotations": [],
        "categories": [{"id": 1, "name": "one"}],
    }
    (folder / "a.png").touch()
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert image_files("coco:a.json:images", tmp_path) == [folder / "a.png"]
    with pytest.raises(NormdetError, match="neither a dataset registered"):
        image_files("nowhere")
    with pytest.raises(NormdetError, match="does not exist"):
        image_files("coco_2017_val_100")


def test_a_dataset_that_the_user_registered_is_checked_too(cfg, tmp_path):
    """A user's own catalogue entry: stated sizes are checked, files to fetch are not."""
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"broken")
    record = {"file_name": str(tmp_path / "good.png"), "height": 20, "width": 30, "annotations": []}
    records = [record, {"file_name": "s3://bucket/there.png", "annotations": []}]
    DatasetCatalog.register("somebody's", lambda: records)
    cfg.DATASETS.TRAIN = ("somebody's",)
    register_datasets(cfg)
    records.append({"file_name": str(tmp_path / "bad.png")})
    records.append({**record, "height": 21})
    with pytest.raises(NormdetError) as refused:
        register_datasets(cfg)
    text = str(refused.value)
    assert "DATASETS.TRAIN \"somebody's\" cannot be trained on" in text and "2 faults" in text
    assert "bad.png cannot be read" in text and "30x20 pixels as it is loaded" in text
