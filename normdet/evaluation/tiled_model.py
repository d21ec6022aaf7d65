"""A model that takes images in tiles; the evaluation calls it like any other."""

from detectron2.config import CfgNode
from torch import nn

from normdet.evaluation.detector import Detector
from normdet.evaluation.tiles import check_tiling


class TiledModel(nn.Module):
    """Wraps a detector for `INPUT.TILE`, as detectron2's test-time augmentation wraps one.

    It takes whole images, not resized. It returns `detections` in place of `instances`, whose masks
    would each be as large as the image.

    Args:
        model: a detector.
        cfg: its config.
        batch: tiles at a time.

    Raises:
        NormdetError: the tiles and the overlap do not fit together.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, batch: int = 1):
        super().__init__()
        check_tiling(cfg.INPUT.TILE, cfg.INPUT.TILE_OVERLAP)
        self.model = model
        self.training = model.training
        self._format = cfg.INPUT.FORMAT
        self._detector = Detector(
            model,
            cfg,
            tile=cfg.INPUT.TILE,
            overlap=cfg.INPUT.TILE_OVERLAP,
            batch=batch,
            statistics=cfg.INPUT.TILE_STATISTICS,
        )

    def forward(self, inputs: list[dict]) -> list[dict]:
        """`{"detections": [...]}` for each image `(C, H, W)`, by contiguous category."""
        outputs = []
        for example in inputs:
            pixels = example["image"].permute(1, 2, 0).numpy()
            pixels = pixels[..., 0] if self._format == "L" else pixels
            pixels = pixels[..., ::-1] if self._format == "BGR" else pixels
            outputs.append({"detections": self._detector(pixels)})
        return outputs
