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


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """detectron2's resizing and flipping, and `RandomD4` if `INPUT.RANDOM_D4` is on."""
    augmentations = detection_utils.build_augmentation(cfg, is_train)
    if is_train and cfg.INPUT.RANDOM_D4:
        augmentations.append(RandomD4())
    return augmentations
