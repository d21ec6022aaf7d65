"""Keypoints from heat maps, in operators that ONNX has."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import keypoint_head
from torch import Tensor


@torch.jit.script
def keypoints_of(maps: Tensor, boxes: Tensor) -> Tensor:
    """The result of detectron2's `heatmaps_to_keypoints`, without its advanced indexing.

    Each map is resized to its box's pixels, and the largest value is the keypoint. Its score is
    the softmax over the map. It loops, since boxes differ in size.

    Args:
        maps: `(N, K, S, S)`.
        boxes: `(N, 4)`.

    Returns:
        `(N, K, 4)`: x, y, the value and the score of each keypoint.
    """
    count = maps.shape[1]
    found = [torch.zeros((0, count, 4), dtype=maps.dtype, device=maps.device)]
    for i in range(maps.shape[0]):
        corner, sides = boxes[i, :2], (boxes[i, 2:] - boxes[i, :2]).clamp(min=1)
        pixels = sides.ceil()
        # Use tensors for whole numbers, since the exporter loses the type of a Python number.
        width, height = pixels.long().unbind()
        size = [int(height), int(width)]
        one = maps[i : i + 1]
        large = F.interpolate(one, size=size, mode="bicubic", align_corners=False)
        value, place = large.reshape(1, count, -1).max(dim=2)
        column = place % width
        row = torch.div(place - column, width, rounding_mode="floor")
        xy = (torch.stack([column, row], dim=2).float() + 0.5) * (sides / pixels) + corner
        score = (one.reshape(1, count, -1) - value.unsqueeze(2)).exp().sum(dim=2).reciprocal()
        found.append(torch.cat([xy, value.unsqueeze(2), score.unsqueeze(2)], dim=2))
    return torch.cat(found)


@contextlib.contextmanager
def onnx_keypoints() -> Iterator[None]:
    """Let detectron2's keypoint heads be exported to ONNX."""
    with mock.patch.object(keypoint_head, "heatmaps_to_keypoints", keypoints_of):
        yield
