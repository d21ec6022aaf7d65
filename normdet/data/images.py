"""The user's images one by one as a model sees them: resized as in a test, unpadded."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor

from normdet.data import build_augmentation, image_file, image_files
from normdet.data.channels import to_format
from normdet.data.image_file import SUFFIXES
from normdet.data.input_record import window_of
from normdet.data.mapper import choice_of, is_deep, read_input
from normdet.data.slices import MAX_PIXELS, Source
from normdet.data.window import apply_window, parse_window, window_limits
from normdet.errors import NormdetError
from normdet.files.faults import stop


def find_images(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """The image files among `paths` and in folders among them, at any depth, sorted.

    Raises:
        NormdetError: a path does not exist, or there is no image.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if path.is_dir():
            found.update(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        elif path.is_file():
            found.add(path)
        else:
            raise NormdetError(f"{path} does not exist")
    if not found:
        where = ", ".join(map(str, paths))
        raise NormdetError(
            f"no images in {where}: looked for {', '.join(SUFFIXES)} (DICOM and NIfTI: make a data "
            "set of them by `normdet prepare` and name it by --dataset)"
        )
    return sorted(found)


def named_images(
    paths: Sequence[str | os.PathLike], dataset: str | None, root: str | os.PathLike
) -> list[Path]:
    """The images that a command line names, by paths or as a dataset; may be none.

    Args:
        paths: as in :func:`find_images`.
        dataset: a name as in `DATASETS.TRAIN`; its paths are relative to `root`.

    Raises:
        NormdetError: both are given, or there are no images.
    """
    if dataset and paths:
        raise NormdetError("--dataset names the images: give it or paths of images, not both")
    if dataset:
        files = image_files(dataset, root)
        if not files:
            raise NormdetError(f"--dataset {dataset} has no images")
        return files
    return find_images(paths) if paths else []


def sample(files: Sequence[Path], count: int) -> list[Path]:
    """At most `count` files, evenly spaced, since neighbours in a folder are often alike."""
    if count >= len(files):
        return list(files)
    return [files[index * len(files) // count] for index in range(count)]


class Images:
    """Reads images for a config. Files that cannot be read are left out and named in `faults`.

    Args:
        files: in the order they are read.
        cfg: `INPUT` says channel order and test size.
        divisor: the model pads sides to multiples of this; they are cut to multiples instead, as
            the padding would count as part of the image.
        window: reduces images of more than 8 bits to 8, as `normdet prepare --window`; under `none`
            they stay as they are.
    """

    def __init__(self, files: Sequence[Path], cfg: CfgNode, divisor: int, window: str = "auto"):
        self.files = files
        self.faults: list[str] = []
        self._format = cfg.INPUT.FORMAT
        self._choice = choice_of(cfg)
        self._augmentations = T.AugmentationList(build_augmentation(cfg, False))
        self._divisor = max(divisor, 1)
        parse_window(window)  # refuse a bad one here, not at each image
        self._window = window

    def __iter__(self) -> Iterator[list[dict[str, Tensor]]]:
        """Batches of one image, `{"image": (C, H, W)}`.

        Raises:
            NormdetError: not one of the files could be read.
        """
        self.faults = []
        for file in self.files:
            try:
                image = self._read(file)
            except NormdetError as error:
                self.faults.append(str(error))
            # Pillow's readers raise errors of any kind.
            except Exception as error:
                self.faults.append(f"{file}: {' '.join(str(error).split()) or 'not readable'}")
            else:
                yield [{"image": image}]
        if len(self.faults) == len(self.files):
            count, first = len(self.files), self.faults[0]
            raise NormdetError(f"none of the {count} images can be read, {first}")

    def _read(self, file: Path) -> Tensor:
        pixels = T.AugInput(self._pixels(file))
        self._augmentations(pixels)
        height, width = (max(n - n % self._divisor, 1) for n in pixels.image.shape[:2])
        if min(pixels.image.shape[:2]) < self._divisor:
            raise ValueError(f"too small: {self._divisor} pixels a side are needed")
        cut = pixels.image[:height, :width]
        # Not every transform keeps the one channel of a grey image.
        return torch.as_tensor(cut.reshape(height, width, -1).transpose(2, 0, 1).copy())

    def _pixels(self, file: Path) -> np.ndarray:
        """`(H, W, C)` in the channels of `INPUT.FORMAT`, as the model was trained on."""
        window = parse_window(window_of(file, self._window))
        if window.kind == "none" or (window.kind == "auto" and not is_deep(file, self._choice)):
            return read_input(file, self._format, self._choice)
        source = Source("image", (file,), file.stem)
        pages = list(
            image_file.read(source, max_pixels=MAX_PIXELS, report=stop, choice=self._choice)
        )
        pixels = apply_window(pages[0].pixels, window_limits(window, pages))
        return np.ascontiguousarray(to_format(pixels, self._format))
