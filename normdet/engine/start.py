"""New norms start from the run's own training images, before the first step."""

import logging

import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from normdet.engine.loader import SeededDataset, derived_seed, sample_images, seeded
from normdet.modeling.start import new_norms, start_from_data
from normdet.parts import PARTS

logger = logging.getLogger(__name__)


def start_norms(
    cfg: CfgNode, model: nn.Module, images: SeededDataset, seed: int
) -> list[str]:
    """Start the new norms of `MODEL.NORMDET.START.PARTS` from `START.IMAGES` training images.

    Every process looks at the same images and ends with the same numbers. Draws from `seed` alone.

    Args:
        model: with its start weights loaded; may be wrapped for several processes.
        images: of the loader that trains.

    Returns:
        The names of the norms that were started, without the wrapper's prefix.
    """
    start = cfg.MODEL.NORMDET.START
    model = getattr(model, "module", model)
    prefixes = [prefix for part in start.PARTS for prefix in PARTS[part].prefixes]
    if not (start.IMAGES and prefixes and new_norms(model, prefixes)):
        return []
    sample = sample_images(images, seed, start.IMAGES)
    size = cfg.SOLVER.IMS_PER_BATCH // (comm.get_world_size() * cfg.SOLVER.ACCUMULATE_STEPS)
    batches = [sample[k : k + size] for k in range(0, len(sample), size)]
    with seeded(derived_seed("start from data", seed)):
        names = start_from_data(model, batches, prefixes=prefixes, keep=start.KEEP)
    if comm.get_world_size() > 1:
        norms = dict(model.named_modules())
        for name in names:
            for value in norms[name].state_dict().values():
                dist.broadcast(value, src=0)
    logger.info("%d new norms start from %d training images", len(names), len(sample))
    return names
