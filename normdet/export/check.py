"""Check on images that a written file finds the same as the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import Run
from .wrap import BACKBONE, Wrapped

# The largest difference allowed: in pixels of boxes, and in scores and all else.
BOX, SCORE = 1e-3, 1e-4


@dataclass(frozen=True)
class Row:
    """The results of file and model on one image.

    Attributes:
        size: its height and width.
        found: the number of the model's objects, or of maps.
        same: whether the file gives the same number.
        boxes: the largest difference of a box's side, in pixels; of a backbone, 0.
        rest: the largest difference of a score or probability; of a backbone, of its maps, as a
            share of their largest value.
    """

    size: tuple[int, int]
    found: int
    same: bool
    boxes: float
    rest: float

    @property
    def passes(self) -> bool:
        return self.same and self.boxes <= BOX and self.rest <= SCORE


@torch.no_grad()
def compare(
    model: Wrapped, run: Run, images: Sequence[Tensor], *, dynamic: bool, least: int = 1
) -> list[Row]:
    """Run model and file on images; with dynamic sizes also at three quarters of each size.

    Images with a side of less than `least` pixels are left out.
    """
    rows = []
    for image in images:
        sizes = [image]
        if dynamic:
            sizes.append(F.interpolate(image[None].float(), scale_factor=0.75)[0])
        for pixels in sizes:
            if min(pixels.shape[1:]) < least:
                continue
            x = model.example(pixels)
            rows.append(_row(model, model.module(x), run(x), tuple(x.shape[-2:])))
    return rows


def _row(model: Wrapped, want: Sequence[Tensor], got: Sequence[Tensor], size) -> Row:
    if model.part == BACKBONE:
        same = all(a.shape == b.shape for a, b in zip(want, got, strict=True))
        pairs = zip(want, got, strict=True) if same else ()
        rest = max((_difference(a, b) / float(a.abs().max() + 1e-12) for a, b in pairs), default=0)
        return Row(size, len(want), same, 0.0, rest)
    mine, theirs = (dict(zip(model.outputs, found, strict=False)) for found in (want, got))
    count = len(mine["scores"])
    if len(theirs["scores"]) != count:
        return Row(size, count, False, float("inf"), float("inf"))
    # Objects of the same score may be in any order.
    order = _matches(mine, theirs)
    differences = {key: _difference(mine[key], theirs[key][order]) for key in model.outputs}
    boxes = differences.pop("pred_boxes")
    points = differences.pop("pred_keypoints", 0.0), differences.pop("pred_keypoint_heatmaps", 0.0)
    same = differences.pop("pred_classes") == 0
    return Row(size, count, same, max(boxes, points[0]), max(differences.values(), default=0.0))


def _matches(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> Tensor:
    """For each object of the model the nearest one of its class in the file's output, used once."""
    taken = torch.zeros(len(theirs["scores"]), dtype=torch.bool)
    order = []
    for box, label in zip(mine["pred_boxes"], mine["pred_classes"], strict=True):
        distance = (theirs["pred_boxes"] - box).abs().amax(1)
        distance = distance + 1e6 * (theirs["pred_classes"] != label) + 1e9 * taken
        nearest = int(distance.argmin())
        taken[nearest] = True
        order.append(nearest)
    return torch.tensor(order, dtype=torch.long)


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
