"""Batches follow from the seed and the iteration alone."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler

from normdet.data import register_datasets
from normdet.engine.loader import (
    BatchStream,
    SeededDataset,
    build_train_loader,
    seeded,
    shape_group,
)
from normdet.errors import NormdetError


def stream(start=0, groups=(0, 0, 1, 1, 1), size=2):
    batches = BatchStream(TrainingSampler(len(groups), seed=3), list(groups), size)
    batches.start = start
    return batches


def test_a_stream_starts_in_the_middle():
    whole = list(itertools.islice(stream(), 12))
    assert list(itertools.islice(stream(start=7), 5)) == whole[7:]


def test_a_batch_is_of_one_group_and_no_draw_comes_twice():
    groups = (0, 0, 1, 1, 1)
    batches = list(itertools.islice(stream(groups=groups), 20))
    assert all(len({groups[index] for _, index in batch}) == 1 for batch in batches)
    draws = [draw for batch in batches for draw, _ in batch]
    assert len(set(draws)) == len(draws)


def test_the_draw_decides_what_is_random_in_an_item():
    class Noise:
        def __getitem__(self, index):
            return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    items = SeededDataset(Noise(), seed=1)
    assert items[0, 0] == items[0, 0]
    assert items[0, 0] != items[1, 0]
    assert items[0, 0] != SeededDataset(Noise(), seed=2)[0, 0]


def test_seeded_leaves_the_random_states_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with seeded(9):
        torch.rand(3)
    assert torch.equal(torch.rand(1), expected)


def as_numbers(batches):
    return [[(d["image_id"], d["image"].sum().item()) for d in batch] for batch in batches]


def test_batches_do_not_depend_on_the_number_of_loader_processes(tiny_cfg):
    runs = []
    for workers in ("0", "2"):
        cfg = tiny_cfg("DATALOADER.NUM_WORKERS", workers)
        register_datasets(cfg)
        runs.append(as_numbers(itertools.islice(build_train_loader(cfg, seed=1), 6)))
    assert runs[0] == runs[1]
    loader = build_train_loader(cfg, seed=1)
    loader.batch_sampler.start = 4
    assert as_numbers(itertools.islice(loader, 2)) == runs[0][4:]
    assert as_numbers(itertools.islice(build_train_loader(cfg, seed=2), 6)) != runs[0]


@pytest.mark.parametrize("grouping", ["True", "False"])
def test_wide_and_tall_images_share_a_batch_only_if_allowed(tiny_cfg, grouping):
    cfg = tiny_cfg("DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    register_datasets(cfg)
    batches = itertools.islice(build_train_loader(cfg, seed=1), 10)
    mixed = [len({d["width"] > d["height"] for d in batch}) == 2 for batch in batches]
    assert any(mixed) == (grouping == "False")


def test_a_config_without_training_data_is_refused(tiny_cfg):
    with pytest.raises(NormdetError, match=r"DATASETS\.TRAIN names no dataset"):
        build_train_loader(tiny_cfg("DATASETS.TRAIN", "()"), seed=1)


class Shelf(torch.utils.data.Dataset):
    """Items 0 to 9, some of which cannot be read."""

    def __init__(self, *broken):
        self.broken = broken

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index in self.broken:
            raise NormdetError(f"{index}.png cannot be read")
        return {"item": index}


def test_the_next_image_stands_in_for_one_that_cannot_be_read():
    dataset = SeededDataset(Shelf(9, 0), 1)
    assert dataset[5, 3] == {"item": 3}
    told = {"item": 1, "broken": ["9.png cannot be read", "0.png cannot be read"]}
    assert dataset[5, 9] == told
    with pytest.raises(NormdetError, match="8 images in a row cannot be read: 1.png"):
        SeededDataset(Shelf(*range(1, 9)), 1)[0, 1]


def test_batches_of_like_sizes_have_one_size_drawn_for_each(tiny_cfg):
    cfg = tiny_cfg(
        "DATALOADER.LIKE_SIZES", True, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2,
        "INPUT.MIN_SIZE_TRAIN", (32, 96), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range",
    )  # fmt: skip
    loader = build_train_loader(cfg, seed=1)
    batches = list(itertools.islice(loader, 6))
    short = [{min(item["image"].shape[1:]) for item in batch} for batch in batches]
    assert all(len(sides) == 1 for sides in short) and len(set(map(tuple, short))) > 2
    loader.batch_sampler.start = 3
    again = list(itertools.islice(loader, 3))
    assert as_numbers(again) == as_numbers(batches[3:])


def test_shapes_of_one_group_are_alike():
    def group(width, height):
        return shape_group({"width": width, "height": height})

    assert group(640, 480) == group(640, 478) != group(640, 427)
    assert group(480, 640) == -group(640, 480)
    assert shape_group({}) == 0


def test_a_batch_has_one_number_in_every_process(monkeypatch):
    numbers = []
    for rank in range(2):
        monkeypatch.setattr("normdet.engine.loader.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("normdet.engine.loader.comm.get_world_size", lambda: 2)
        batches = BatchStream(TrainingSampler(5, seed=3), [0, 0, 1, 1, 1], 2, seed=7)
        batches.start = 2
        taken = list(itertools.islice(batches, 4))
        assert all(len({number for _, _, number in batch}) == 1 for batch in taken)
        numbers.append([batch[0][2] for batch in taken])
    assert numbers[0] == numbers[1] and len(set(numbers[0])) == 4
