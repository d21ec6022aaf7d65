"""Training batches that depend on the seed and the iteration alone, so that runs can resume.

detectron2's loader draws its seed anew in every process and cannot start in the middle. Here batch
`i` of a run (its images, their order and augmentation) follows from (seed, i). A resumed run sees
what the uninterrupted one would have seen, with any number of loader processes.
"""

import contextlib
import copy
import itertools
import math
import os
import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    build_detection_train_loader,
    detection_utils,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from normdet.data import build_mapper
from normdet.errors import NormdetError

# Skip up to this many unreadable images in a row. If there are more, the disk is probably gone.
_IN_A_ROW = 8


def derived_seed(purpose: str, *numbers: int) -> int:
    """A 32-bit seed for one purpose at one place, given by non-negative numbers."""
    entropy = (zlib.crc32(purpose.encode()), len(numbers), *numbers)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, `random`, numpy and torch on the CPU draw from `seed`; their states are restored."""
    # detectron2's augmentations draw from numpy's global state, the legacy one.
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.random.set_rng_state(states[2])


class SeededDataset(Dataset):
    """A dataset read by (draw, index); the draw alone decides what is random in an item.

    A key may end with a third number, which the dataset gets beside the index.

    An image that can no longer be read is replaced by the next one. The item then has a list of
    sentences as `broken`.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, ...]) -> Any:
        draw, index, *batch = key
        broken: list[str] = []
        for _ in range(_IN_A_ROW):
            try:
                with seeded(derived_seed("image", self.seed, draw)):
                    item = self.dataset[(index, *batch) if batch else index]
            except (NormdetError, detection_utils.SizeMismatchError) as error:
                broken.append(str(error))
                index = (index + 1) % len(self.dataset)
            else:
                return {**item, "broken": broken} if broken else item
        raise NormdetError(f"{len(broken)} images in a row cannot be read: {broken[0]}")


class BatchStream(Sampler):
    """Endless batches of (draw, index), each of one group, from batch `start` on.

    A draw is a number that is unique over the stream and over the processes of the job.
    Skipping reads no image and costs about a microsecond per image skipped.

    Args:
        indices: an endless sampler that starts over with every `iter`.
        groups: the group of every index: images of one batch share it (aspect ratio).
        size: images in a batch.
        seed: if given, keys are (draw, index, number) with a number for the batch, which all
            processes of the job share.
    """

    def __init__(self, indices: Sampler, groups: list[int], size: int, seed: int | None = None):
        self.indices = indices
        self.groups = groups
        self.size = size
        self.seed = seed
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        batches = itertools.islice(self._batches(), self.start, None)
        if self.seed is None:
            return batches
        numbers = (derived_seed("batch", self.seed, n) for n in itertools.count(self.start))
        return ([(*key, n) for key in batch] for batch, n in zip(batches, numbers, strict=False))

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        rank, world = comm.get_rank(), comm.get_world_size()
        waiting = defaultdict(list)
        for place, index in enumerate(self.indices):
            batch = waiting[self.groups[index]]
            batch.append((place * world + rank, index))
            if len(batch) == self.size:
                yield batch[:]
                batch.clear()


def build_train_loader(cfg: CfgNode, seed: int) -> DataLoader:
    """detectron2's training loader for `cfg`, with batches that follow from `seed`.

    Datasets and samplers are those of detectron2; `loader.batch_sampler.start` is the
    batch that the next `iter(loader)` begins with, `loader.image_sizes` has a file for every size
    `(H, W)` of image. A batch has `SOLVER.IMS_PER_BATCH` images over all processes.

    Raises:
        NormdetError: where there is no dataset, or none of its images has annotations.
    """
    if not cfg.DATASETS.TRAIN:
        raise NormdetError("DATASETS.TRAIN names no dataset to train on")
    try:
        with seeded(derived_seed("order", seed)):  # samplers draw their seeds from numpy
            parts = build_detection_train_loader.from_config(cfg, mapper=build_mapper(cfg, True))
    except AssertionError as error:  # detectron2's way to say that no image has annotations
        raise NormdetError(f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: {error}") from error
    dataset = parts["dataset"]
    records = DatasetFromList(dataset, copy=False)
    like, grouped = cfg.DATALOADER.LIKE_SIZES, parts["aspect_ratio_grouping"]
    loader = seeded_loader(
        _OfBatches(records, parts["mapper"]) if like else MapDataset(records, parts["mapper"]),
        parts["sampler"],
        [shape_group(d) if like else int(grouped and _is_wide(d)) for d in dataset],
        parts["total_batch_size"] // comm.get_world_size(),
        parts["num_workers"],
        seed,
        like,
    )
    loader.image_sizes = {
        (record["height"], record["width"]): record["file_name"]
        for record in dataset
        if record.get("height") and record.get("width")
    }
    return loader


def _is_wide(record: dict) -> bool:
    return record.get("width", 0) > record.get("height", 0)


def shape_group(record: dict) -> int:
    """A number for the shape of an image: shapes of one group differ by a ninth at most.

    Resized to one short side, images of 4:3 and of 3:2 are of two groups.
    """
    height, width = record.get("height"), record.get("width")
    return round(8 * math.log2(width / height)) if height and width else 0


class _OfBatches(Dataset):
    """Mapped records by (index, number of the batch)."""

    def __init__(self, records: Dataset, mapper: Callable[[dict], dict]):
        self.records, self.mapper = records, mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index, batch = key if isinstance(key, tuple) else (key, None)
        return self.mapper({**self.records[index], "batch": batch})


def seeded_loader(
    dataset: Dataset, indices: Sampler, groups: list[int], size: int, workers: int, seed: int,
    numbered: bool = False,
) -> DataLoader:  # fmt: skip
    """A loader of endless batches that follow from `seed`, as lists of the dataset's items.

    Args:
        dataset: as for :class:`SeededDataset`.
        indices, groups, size: as for :class:`BatchStream`.
        workers: loader processes.
        numbered: whether the dataset is read by (index, number of the batch).
    """
    return DataLoader(
        SeededDataset(dataset, seed),
        batch_sampler=BatchStream(indices, groups, size, seed if numbered else None),
        num_workers=workers,
        collate_fn=list,
        # Leave the terminal's process group: Ctrl-C must not kill loaders that a last step needs.
        worker_init_fn=_leave_process_group,
        # Without it every `iter` draws from torch's global generator, which the steps use.
        generator=torch.Generator(),
    )


def same_batches(loader: DataLoader) -> DataLoader:
    """A loader of the same batches over the same images in memory, read in this process.

    It has its own position in the stream.
    """
    return DataLoader(
        loader.dataset,
        batch_sampler=copy.copy(loader.batch_sampler),
        collate_fn=loader.collate_fn,
        generator=torch.Generator(),
    )


def sample_images(images: SeededDataset, seed: int, count: int) -> list[dict]:
    """Training inputs to look at before the first step: the same in every process of a job.

    Args:
        images: of the loader that trains.

    Returns:
        `count` images, or all there are, drawn from `seed` and augmented as in training.
    """
    with seeded(derived_seed("sample", seed)):
        order = torch.randperm(len(images)).tolist()
    # Training batches number their draws from 0, so these are never used there.
    return [images[2**31 + k, index] for k, index in enumerate(order[:count])]


def _leave_process_group(worker: int) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()
