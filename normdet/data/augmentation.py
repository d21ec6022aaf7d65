"""Augmentations: detectron2's, and the symmetries of a microscope's field of view."""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform


class TransposeTransform(Transform):
    """Swap the axes: the mirror image about the main diagonal."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Swap the first two axes of `(H, W)` or `(H, W, C)`."""
        return np.ascontiguousarray(np.swapaxes(img, 0, 1))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Swap x and y of `(N, 2)`."""
        return coords[:, ::-1].copy()

    def inverse(self) -> Transform:
        """Itself."""
        return self


class RandomD4(T.Augmentation):
    """One of the eight flips and quarter turns, all equally likely; no pixel is interpolated."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw one symmetry for `image` `(H, W, C)`."""
        height, width = image.shape[:2]
        vertical, horizontal, transpose = (self._rand_range() < 0.5 for _ in range(3))
        transforms: list[Transform] = []
        if vertical:
            transforms.append(T.VFlipTransform(height))
        if horizontal:
            transforms.append(T.HFlipTransform(width))
        if transpose:
            transforms.append(TransposeTransform())
        return T.TransformList(transforms)


class OneSizeABatch(T.ResizeShortestEdge):
    """detectron2's resizing, which draws one size for all images of a batch.

    Attributes:
        batch: a number that the images of a batch share; `None` draws for each image.
    """

    batch: int | None = None

    def get_transform(self, image: np.ndarray) -> Transform:
        """Resize `image` `(H, W, C)` as the batch's draw says."""
        if self.batch is None:
            return super().get_transform(image)
        generator, sizes = np.random.default_rng(self.batch), self.short_edge_length
        size = generator.integers(sizes[0], sizes[1] + 1) if self.is_range else None
        size = int(generator.choice(sizes) if size is None else size)
        return T.ResizeShortestEdge(size, self.max_size, interp=self.interp).get_transform(image)


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """detectron2's resizing and flipping, and what our keys ask for.

    `DATALOADER.LIKE_SIZES` draws one size a batch; `INPUT.RANDOM_D4` adds `RandomD4`.
    """
    augmentations = detection_utils.build_augmentation(cfg, is_train)
    if is_train and cfg.DATALOADER.LIKE_SIZES:
        augmentations[0] = OneSizeABatch(
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        )
    if is_train and cfg.INPUT.RANDOM_D4:
        augmentations.append(RandomD4())
    return augmentations
