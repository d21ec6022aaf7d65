"""detectron2's inference in a form that torch.export can record: without branches on values.

detectron2 asks what is in tensors to save work: whether any box is left, whether any is not
finite. torch.export has no answer, since it records for all inputs. These functions give the same
results and never ask.
"""

import contextlib
from collections.abc import Iterator, Sequence
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.modeling import anchor_generator, poolers
from detectron2.modeling.meta_arch import dense_detector, retinanet
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor


def nms_by_label(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """What `batched_nms` keeps, the highest score first.

    Boxes of each label are moved to a place of their own. In double precision this moves no box
    relative to the others.

    Args:
        boxes: `(N, 4)`.
        scores: `(N,)`.
        labels: `(N,)`: boxes of different labels do not suppress each other.
        threshold: of the intersection over union.

    Returns:
        Indices into `boxes`.
    """
    boxes = boxes.double()
    side = F.pad(boxes, (0, 0, 0, 1)).max() + 1  # there may be no box
    apart = boxes + (labels.double() * side)[:, None]
    return torch.ops.torchvision.nms(apart, scores.double(), threshold)


def find_top_rpn_proposals(
    proposals: Sequence[Tensor],
    pred_objectness_logits: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """detectron2's function of this name, in inference."""
    results = []
    for index, size in enumerate(image_sizes):
        boxes, scores, levels = [], [], []
        for level, (box, logit) in enumerate(zip(proposals, pred_objectness_logits, strict=True)):
            best, place = logit[index].topk(torch.sym_min(logit.shape[1], pre_nms_topk))
            boxes.append(box[index, place])
            scores.append(best)
            levels.append(torch.full_like(place, level))
        box, score, level = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        finite = torch.isfinite(box).all(dim=1) & torch.isfinite(score)
        box = _clip(box, size)
        large = ((box[:, 2:] - box[:, :2]) > min_box_size).all(dim=1)
        box, score, level = _take(finite & large, box, score, level)
        keep = nms_by_label(box, score, level, nms_thresh)[:post_nms_topk]
        found = Instances(size, proposal_boxes=Boxes(box[keep]), objectness_logits=score[keep])
        results.append(found)
    return results


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """detectron2's function of this name."""
    count = scores.shape[1] - 1
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    box = _clip(boxes.unflatten(1, (-1, 4)), image_shape).expand(-1, count, 4)
    regions, labels = ((scores[:, :-1] > score_thresh) & finite[:, None]).nonzero().unbind(1)
    box, score = box[regions, labels], scores[regions, labels]
    keep = nms_by_label(box, score, labels, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    found = Instances(image_shape, pred_boxes=Boxes(box[keep]), scores=score[keep],
                      pred_classes=labels[keep])  # fmt: skip
    return found, regions[keep]


def decode_per_level(
    self,
    anchors: Boxes,
    pred_scores: Tensor,
    pred_deltas: Tensor,
    score_thresh: float,
    topk_candidates: int,
    image_size: tuple[int, int],
) -> Instances:
    """`DenseDetector._decode_per_level_predictions`: the best candidates, then the threshold."""
    count = torch.sym_min(pred_scores.numel(), topk_candidates)
    best, place = pred_scores.flatten().topk(count)
    best, place = _take(best > score_thresh, best, place)
    anchor = place // pred_scores.shape[1]
    boxes = self.box2box_transform.apply_deltas(pred_deltas[anchor], anchors.tensor[anchor])
    return Instances(image_size, pred_boxes=Boxes(boxes), scores=best,
                     pred_classes=place % pred_scores.shape[1])  # fmt: skip


def _clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes `(..., 4)` cut at the edges of an image of a height and width."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def _take(mask: Tensor, *values: Tensor) -> list[Tensor]:
    (places,) = mask.nonzero(as_tuple=True)
    return [value[places] for value in values]


def _boxes(self, tensor: Tensor) -> None:
    """`Boxes.__init__`, which asks whether there are none."""
    self.tensor = tensor.to(torch.float32)


def _clip_boxes(self, box_size: tuple[int, int]) -> None:
    """`Boxes.clip`, which asks whether all are finite."""
    self.tensor = _clip(self.tensor, box_size)


def _set(self, name: str, value) -> None:
    """`Instances.set`, which asks whether the lengths agree."""
    self._fields[name] = value


def _pooler_format(box_lists: Sequence[Boxes]) -> Tensor:
    """`convert_boxes_to_pooler_format`, which repeats an image's number by a count in a tensor."""
    rows = [F.pad(b.tensor, (1, 0), value=float(image)) for image, b in enumerate(box_lists)]
    return torch.cat(rows)


def _grid_offsets(
    size: Sequence[int], stride: int, offset: float, target_device_tensor: Tensor
) -> tuple[Tensor, Tensor]:
    """`_create_grid_offsets` of anchors, which counts steps in floating point."""
    y, x = (
        (torch.arange(count, device=target_device_tensor.device) + offset) * stride
        for count in size
    )
    y, x = torch.meshgrid(y.float(), x.float(), indexing="ij")
    return x.reshape(-1), y.reshape(-1)


def _image_list(tensors: Sequence[Tensor], size_divisibility: int = 0, pad_value: float = 0.0,
                padding_constraints: dict | None = None) -> ImageList:  # fmt: skip
    """`ImageList.from_tensors` of one image, which takes its size through a tensor."""
    (image,) = tensors
    step = (padding_constraints or {}).get("size_divisibility", size_divisibility)
    height, width = image.shape[-2:]
    if step > 1:
        image = F.pad(image, (0, -width % step, 0, -height % step), value=pad_value)
    return ImageList(image[None], [(height, width)])


@contextlib.contextmanager
def recordable() -> Iterator[None]:
    """Let detectors of detectron2 be recorded by torch.export, one image at a time."""
    dense = dense_detector.DenseDetector
    with contextlib.ExitStack() as stack:
        for home, name, function in (
            (Boxes, "__init__", _boxes),
            (Boxes, "clip", _clip_boxes),
            (Instances, "set", _set),
            (ImageList, "from_tensors", staticmethod(_image_list)),
            (anchor_generator, "_create_grid_offsets", _grid_offsets),
            (poolers, "convert_boxes_to_pooler_format", _pooler_format),
            (rpn, "find_top_rpn_proposals", find_top_rpn_proposals),
            (fast_rcnn, "fast_rcnn_inference_single_image", fast_rcnn_inference_single_image),
            (retinanet, "batched_nms", nms_by_label),
            (dense, "_decode_per_level_predictions", decode_per_level),
        ):
            stack.enter_context(mock.patch.object(home, name, function))
        yield
