"""The detectors' trainer on labelled images, which measures top-1 and top-5 instead of AP."""

import functools
import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import TrainingSampler
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from normdet.engine import Trainer
from normdet.engine.loader import derived_seed, seeded_loader
from normdet.errors import NormdetError
from normdet.files.words import first_of

from .images import LabelledImages, find_labelled, transforms

logger = logging.getLogger(__name__)

# A folder of a million images is walked once, not at each evaluation.
_images_of = functools.cache(find_labelled)


class PretrainTrainer(Trainer):
    """Trains :class:`normdet.modeling.NormdetClassifier` on `PRETRAIN.DATA`; see :class:`Trainer`.

    Workers, precision, stops, checkpoints, exact resumption and the average are that class's.
    """

    @property
    def evaluates(self) -> bool:
        return True

    def build_train_loader(self, cfg: CfgNode) -> DataLoader:
        """Batches that follow from the seed and the iteration."""
        images = LabelledImages(_images_of(cfg.PRETRAIN.DATA).train, cfg, transforms(cfg, True))
        sampler = TrainingSampler(len(images), seed=derived_seed("order", self.seed))
        size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        loader = seeded_loader(
            images, sampler, [0] * len(images), size, cfg.DATALOADER.NUM_WORKERS, self.seed
        )
        loader.image_sizes = {}
        return loader

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict:
        """Top-1 and top-5 accuracy on the centres of the validation images, in percent.

        Images that cannot be read are named and left out.

        Returns:
            On rank 0 `{"classification": {"top-1": ..., "top-5": ...}}`; {} elsewhere. Top-5 is
            left out where there are no more classes.
        """
        images = _Readable(
            LabelledImages(_images_of(cfg.PRETRAIN.DATA).val, cfg, transforms(cfg, False))
        )
        share = Subset(images, range(comm.get_rank(), len(images), comm.get_world_size()))
        size = max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size())
        loader = DataLoader(
            share, size, num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=list,
            generator=torch.Generator(),  # leave the global one to the next step
        )  # fmt: skip
        ranks, faults = [], []
        with inference_context(model), torch.no_grad():
            for batch in loader:
                faults += [example for example in batch if isinstance(example, str)]
                batch = [example for example in batch if isinstance(example, dict)]
                found = model(batch) if batch else []
                for example, output in zip(batch, found, strict=True):
                    scores = output["scores"]
                    # A tie or a NaN does not count as right.
                    ranks.append(int((~(scores < scores[example["label"]])).sum()) - 1)
        everyone = comm.all_gather((ranks, faults))
        ranks = [rank for theirs, _ in everyone for rank in theirs]
        faults = [fault for _, theirs in everyone for fault in theirs]
        if not comm.is_main_process():
            return {}
        if faults:
            logger.warning("%d images are left out: %s", len(faults), first_of(faults))
        if not ranks:
            raise NormdetError(f"none of the images to validate on can be read: {first_of(faults)}")
        ks = [k for k in (1, 5) if k < cfg.PRETRAIN.NUM_CLASSES]
        shares = {f"top-{k}": 100 * sum(r < k for r in ranks) / len(ranks) for k in ks}
        logger.info("accuracy on %d images: %s", len(ranks), shares)
        return {"classification": shares}


class _Readable(Dataset):
    """Examples, or a sentence instead of one that cannot be read."""

    def __init__(self, images: Dataset):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict | str:
        try:
            return self._images[index]
        except NormdetError as error:
            return str(error)
