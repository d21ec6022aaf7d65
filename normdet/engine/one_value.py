"""Find batches that are too small for a norm before the first step, if the config shows it."""

from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import RetinaNet
from torch import nn

from normdet.errors import NormdetError
from normdet.layers import BatchStatistics


def norms_of_one_batch(model: nn.Module, workers: int) -> dict[str, BatchStatistics]:
    """The names of norms that need a batch and train on that of one worker alone."""
    return {
        name: norm
        for name, norm in model.named_modules()
        if isinstance(norm, BatchStatistics)
        and norm.needs_batch
        and not norm.is_frozen
        and not (norm.sync and workers > 1)
    }


def images_at_once(cfg: CfgNode, workers: int) -> int:
    """How many images go through a worker's model together."""
    return cfg.SOLVER.IMS_PER_BATCH // (workers * cfg.SOLVER.ACCUMULATE_STEPS)


def refuse_one_value(
    cfg: CfgNode, model: nn.Module, sizes: Mapping[tuple[int, int], str], workers: int
) -> None:
    """Refuse a training whose feature maps give a norm one value per channel to normalize.

    An image of the smallest size runs once through the backbone and the head on its maps, without
    gradients. Heads on regions are left to the layers' own checks. Costs nothing unless workers see
    single images, a norm needs several, and an image is very small.

    Args:
        model: a detector of detectron2's.
        sizes: a training image for every size `(H, W)`.
        workers: processes of the job.

    Raises:
        NormdetError: naming the norms, the image and what to change.
    """
    norms = norms_of_one_batch(model, workers)
    if images_at_once(cfg, workers) != 1 or not norms or not hasattr(model, "backbone"):
        return
    trained = {_trained_size(cfg, *size): name for size, name in sizes.items()}
    if not trained:
        return
    stride = max(shape.stride for shape in model.backbone.output_shape().values())
    height, width = min(trained, key=lambda size: (_cells(*size, stride), size[0] * size[1]))
    if _cells(height, width, stride) > 1:
        return
    alone = _seen_once(model, norms, height, width)
    if alone:
        options = sorted({getattr(norms[n], "option", type(norms[n]).__name__) for n in alone})
        raise NormdetError(
            f"{trained[height, width]} is trained on at {width}x{height} pixels, one image at a "
            f"time, and gives {len(alone)} norms, such as {alone[0]}, a map of 1x1: one value per "
            f"channel, of which {', '.join(options)} cannot take statistics. Use GN, LN or FRN "
            "there (--norm, --norm-parts), larger images (INPUT.MIN_SIZE_TRAIN) or more of them "
            "at a time (SOLVER.IMS_PER_BATCH)"
        )


def _trained_size(cfg: CfgNode, height: int, width: int) -> tuple[int, int]:
    """The smallest size `(H, W)` to which training resizes an image."""
    crop = cfg.INPUT.CROP
    if cfg.INPUT.TILE:
        height, width = min(height, cfg.INPUT.TILE), min(width, cfg.INPUT.TILE)
    elif crop.ENABLED and crop.TYPE.startswith("relative"):
        height, width = int(height * crop.SIZE[0] + 0.5), int(width * crop.SIZE[1] + 0.5)
    elif crop.ENABLED:
        height, width = min(height, int(crop.SIZE[0])), min(width, int(crop.SIZE[1]))
    smallest = min(cfg.INPUT.MIN_SIZE_TRAIN)
    if not smallest:  # images are not resized
        return height, width
    return T.ResizeShortestEdge.get_output_shape(
        max(height, 1), max(width, 1), smallest, cfg.INPUT.MAX_SIZE_TRAIN
    )


def _cells(height: int, width: int, stride: int) -> int:
    return -(-height // stride) * -(-width // stride)


@torch.no_grad()
def _seen_once(
    model: nn.Module, norms: dict[str, BatchStatistics], height: int, width: int
) -> list[str]:
    """The norms that see one value per channel of an image of this size, by name."""
    seen: list[str] = []
    training = model.training
    handles = [
        norm.register_forward_hook(
            lambda norm, inputs, output, name=name: seen.append(name)
            if inputs[0].numel() == norm.num_features
            else None
        )
        for name, norm in norms.items()
    ]
    try:
        model.eval()
        channels, divisor = len(model.pixel_mean), max(model.backbone.size_divisibility, 1)
        height, width = (-(-n // divisor) * divisor for n in (height, width))
        image = torch.zeros(1, channels, height, width, device=model.pixel_mean.device)
        features = model.backbone(image)
        if isinstance(model, RetinaNet):
            model.head([features[name] for name in model.head_in_features])
        elif getattr(model, "proposal_generator", None) is not None:
            rpn = model.proposal_generator
            rpn.rpn_head([features[name] for name in rpn.in_features])
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return list(dict.fromkeys(seen))
