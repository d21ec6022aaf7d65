"""`INPUT.TILE_STATISTICS image`: a tile's norms take the statistics of its whole image."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from normdet.data.slices import Slice
from normdet.errors import NormdetError
from normdet.evaluation.detector import Detector
from normdet.evaluation.image_statistics import OneImage, cores_of
from normdet.evaluation.tiles import tile_boxes
from tests.modeling.test_padding import (
    build,
    config,
    found,
    inputs,
    nothing_left_to_chance,  # noqa: F401
)

WHOLE = (0.0, 0.0, 1.0, 1.0)
NORMS = ("GN", "FRN+TLU", "BN")


def model_of(norm: str, detector: str = "GeneralizedRCNN", ignore: bool = False):
    cfg = config(norm, detector, MODEL__NORMDET__IGNORE_PADDING=ignore, INPUT__MIN_SIZE_TEST=0)
    return cfg, build(cfg).eval()


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise, bright in one half and nearly dark in the other."""
    noise = np.random.default_rng(seed).random((height, width, 3)) * 200
    noise[:, width // 2 :] *= 0.02
    return noise.astype(np.uint8)


def objects(model, cfg, image: np.ndarray, statistics: str, batch: int = 2) -> list[tuple]:
    detector = Detector(
        model, cfg, tile=64, overlap=16, batch=batch, statistics=statistics, threshold=0.02
    )
    return [(*one.box, one.score) for one in detector(image)]


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["GeneralizedRCNN", "RetinaNet"])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_one_tile_that_covers_the_image_finds_what_the_model_finds(norm, detector, ignore):
    """Padding to multiples of the stride is no part of the image only if it is ignored."""
    _, model = model_of(norm, detector, ignore)
    batch = inputs([(53, 70) if ignore else (64, 96)])
    one = OneImage(model)
    with torch.no_grad():
        assert (one.gather(batch, [WHOLE]) > 0) == (norm != "BN")
        (got,) = one(batch, [WHOLE])
    (want,) = found(model, batch)
    for name, value in got["instances"].get_fields().items():
        torch.testing.assert_close(getattr(value, "tensor", value), want[name], msg=name)


def test_tiles_of_an_image_share_what_they_were_normalized_by():
    """An empty tile is left as empty as it is in the image, so its maps are not blown up."""
    _, model = model_of("GN")
    image = pixels(64, 160)
    boxes = tile_boxes(64, 160, 64, 16)
    batch = [
        {"image": torch.as_tensor(image[y0:y1, x0:x1].copy()).permute(2, 0, 1)}
        for x0, y0, x1, y1 in boxes
    ]
    one = OneImage(model)
    with torch.no_grad():
        assert one.gather(batch, cores_of(boxes)) > 50
        maps = model.backbone(one.preprocess(batch, cores_of(boxes)).tensor)["p2"]
        own = model.backbone(model.preprocess_image(batch).tensor)["p2"]
        whole = {"image": torch.as_tensor(image.copy()).permute(2, 0, 1)}
        reference = model.backbone(model.preprocess_image([whole]).tensor)["p2"]
    deviation = [x.flatten(1).std(1) for x in (maps, own, reference[..., -16:])]
    assert deviation[0][-1] < deviation[1][-1]
    assert abs(deviation[0][-1] - deviation[2][0]) < abs(deviation[1][-1] - deviation[2][0])


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [(64, 150), (150, 40), (100, 120)])
def test_images_larger_than_a_tile(norm, size):
    cfg, model = model_of(norm)
    before = {name: id(value) for name, value in vars(model).items()}
    image = pixels(*size)
    together = objects(model, cfg, image, "image", batch=100)
    own = objects(model, cfg, image, "own", batch=100)
    assert together and (together == own) == (norm == "BN")
    assert objects(model, cfg, image, "image", batch=100) == together
    assert {name: id(value) for name, value in vars(model).items()} == before


@pytest.mark.parametrize("size", [(1, 1), (30, 40), (64, 64)])
def test_an_image_within_a_tile_has_its_own(size):
    cfg, model = model_of("GN")
    image = pixels(*size)
    assert objects(model, cfg, image, "image") == objects(model, cfg, image, "own")


def test_images_of_a_batch_and_a_stream_keep_their_order():
    cfg, model = model_of("GN")
    images = [pixels(50, 40), pixels(64, 150, 1), pixels(40, 50, 2), pixels(20, 20, 3)]
    detector = Detector(model, cfg, tile=64, overlap=16, batch=3, statistics="image")
    slices = [
        (Slice(one, str(k), None, None, None, source=Path()), None) for k, one in enumerate(images)
    ]
    names = [item.name for item, _, _ in detector.stream(slices)]
    assert names == ["0", "1", "2", "3"]


def test_two_images_in_two_threads_on_one_model():
    cfg, model = model_of("FRN+TLU")
    images = [pixels(64, 150, seed) for seed in range(4)]
    alone = [objects(model, cfg, image, "image") for image in images]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda image: objects(model, cfg, image, "image"), images))
    assert beside == alone


def test_a_network_of_fixed_statistics_passes_once(monkeypatch):
    cfg, model = model_of("FrozenBN")
    calls = []
    gather = OneImage.gather
    monkeypatch.setattr(OneImage, "gather", lambda *args: calls.append(1) or gather(*args))
    image = pixels(64, 150)
    assert objects(model, cfg, image, "image") == objects(model, cfg, image, "own")
    assert len(calls) == 1  # of three tiles


def test_models_and_networks_without_a_form_are_refused():
    cfg, model = model_of("GN")
    with pytest.raises(NormdetError, match="TILE_STATISTICS own"):
        objects(nn.Identity(), cfg, pixels(64, 150), "image")
    odd = copy.deepcopy(model)
    forward = odd.backbone.forward
    odd.backbone.forward = lambda x: {k: v.flip(3) for k, v in forward(x).items()}
    with pytest.raises(NormdetError, match="does not tell its image"):
        objects(odd, cfg, pixels(64, 150), "image")


def test_cores_cover_an_image_once():
    for height, width, size, overlap in ((100, 170, 64, 16), (64, 64, 64, 0), (50, 200, 64, 12)):
        covered = np.zeros((height, width), int)
        boxes = tile_boxes(height, width, size, overlap)
        for (x0, y0, x1, y1), core in zip(boxes, cores_of(boxes), strict=True):
            top, left, bottom, right = (
                round(start + share * (end - start))
                for share, start, end in zip(core, (y0, x0) * 2, (y1, x1) * 2, strict=True)
            )
            covered[top:bottom, left:right] += 1
        assert (covered == 1).all()
