"""A folder of images with a folder for each class, as training and validation examples."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import DatasetFolder
from torchvision.transforms import v2

from normdet.data.image_file import SUFFIXES
from normdet.data.mapper import choice_of, read_input
from normdet.errors import NormdetError

# Without validation images, one in this many images of each class is held out.
HELD_OUT = 10

Sample = tuple[str, int]


@dataclass(frozen=True)
class LabelledFolder:
    """The images of a folder.

    Attributes:
        classes: names, in the order of the labels.
        train, val: paths and labels.
    """

    classes: list[str]
    train: list[Sample]
    val: list[Sample]


def find_labelled(folder: str | Path) -> LabelledFolder:
    """The images in `FOLDER/train/CLASS` and `FOLDER/val/CLASS`, or in `FOLDER/CLASS`.

    Without a folder `val`, every tenth image of each class is held out.

    Raises:
        NormdetError: there are fewer than two classes, a class without images, or one too small to
            hold an image out; or `train` and `val` have different classes.
    """
    folder = Path(folder)
    root = folder / "train" if (folder / "train").is_dir() else folder
    classes, found = _read(root)
    if root != folder and (folder / "val").is_dir():
        theirs, val = _read(folder / "val")
        if theirs != classes:
            odd = ", ".join(sorted(set(classes) ^ set(theirs))[:5])
            raise NormdetError(f"{folder}: train and val have different classes: {odd}")
        return LabelledFolder(classes, found, val)
    train: list[Sample] = []
    val = []
    for label, samples in itertools.groupby(found, lambda sample: sample[1]):
        images = list(samples)
        if len(images) < 2:
            raise NormdetError(
                f"{root / classes[label]} has one image: at least 2 are needed to hold one out, or "
                f"give {folder / 'train'} and {folder / 'val'}"
            )
        first = min(HELD_OUT // 2, len(images) - 1)
        val += images[first::HELD_OUT]
        del images[first::HELD_OUT]
        train += images
    return LabelledFolder(classes, train, val)


def _read(root: Path) -> tuple[list[str], list[Sample]]:
    if not root.is_dir():
        raise NormdetError(f"--data {root} is no folder")
    try:
        found = DatasetFolder(str(root), loader=str, extensions=SUFFIXES)
    except FileNotFoundError as error:  # torchvision's: no class, or classes without images
        said = " ".join(str(error).split())
        raise NormdetError(
            f"--data {root}: {said} (a folder for each class, with its images in it)"
        ) from None
    if len(found.classes) < 2:
        raise NormdetError(
            f"--data {root} has one class, {found.classes[0]}: nothing is to be told apart"
        )
    return found.classes, found.samples


class LabelledImages(Dataset):
    """Examples `{"image": (C, H, W), "label": int}`, read as detectors read theirs.

    Args:
        samples: paths and labels.
        cfg: `INPUT` says how images are read.
        transform: resizes a tensor `(C, H, W)`.

    Raises:
        NormdetError: an image cannot be read.
    """

    def __init__(self, samples: list[Sample], cfg: CfgNode, transform: Callable[[Tensor], Tensor]):
        self._samples, self._transform = samples, transform
        self._format, self._choice = cfg.INPUT.FORMAT, choice_of(cfg)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict:
        path, label = self._samples[index]
        pixels = read_input(path, self._format, self._choice)
        pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
        return {"image": self._transform(torch.tensor(pixels)), "label": label}


def transforms(cfg: CfgNode, train: bool) -> v2.Transform:
    """Random resized crops and flips, or the centre of a slightly larger image."""
    size = cfg.PRETRAIN.SIZE
    if not train:
        return v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])
    steps: list[v2.Transform] = [v2.RandomResizedCrop(size, scale=(cfg.PRETRAIN.SMALLEST_CROP, 1))]
    flips = {"horizontal": [v2.RandomHorizontalFlip()], "vertical": [v2.RandomVerticalFlip()]}
    steps += flips.get(cfg.INPUT.RANDOM_FLIP, [])
    if cfg.INPUT.RANDOM_D4:
        quarters = [v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)]
        steps += [v2.RandomChoice(quarters), v2.RandomHorizontalFlip()]
    return v2.Compose(steps)
