"""Measure a conversion: relative errors of features, and agreement of a classifier."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .views import Views


@dataclass
class Classifier:
    """The fully connected end of an ImageNet network, `(classes, C)` and `(classes,)`."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Scores `(N, classes)` of the last stage's features `(N, C, H, W)`."""
        return features.mean(dim=[2, 3]) @ self.weight.T + self.bias


@torch.no_grad()
def compare(
    original: Views,
    converted: Views,
    images: Tensor,
    classifier: Classifier | None = None,
    size: int = 8,
) -> dict[str, float]:
    """Distances between two networks on images `(N, 3, H, W)` to which neither was fitted.

    Returns:
        `error STAGE` for each of a ResNet's stages and each other output: the norm of the
        difference over the norm of the original's, over all images. With a classifier also
        `agreement`, the share of images that both give the same class, and `kl`, the mean
        divergence of its probabilities in nats.
    """
    squares: dict[str, list[float]] = {}
    same, divergence = 0, 0.0
    for batch in images.split(size):
        regions = original.regions(batch)
        theirs, ours = original(batch, regions), converted(batch, regions)
        for name, value in theirs.items():
            sums = squares.setdefault(name, [0.0, 0.0])
            sums[0] += float((ours[name] - value).square().sum())
            sums[1] += float(value.square().sum())
        if classifier is not None:
            last = list(original.blocks)[-1]
            scores = [classifier(outputs[last]) for outputs in (theirs, ours)]
            same += int((scores[0].argmax(1) == scores[1].argmax(1)).sum())
            known, guessed = (score.double().log_softmax(1) for score in scores)
            divergence += float((known.exp() * (known - guessed)).sum())
    found = {
        f"error {name}": (different / max(total, 1e-12)) ** 0.5
        for name, (different, total) in _stages(squares).items()
    }
    if classifier is not None:
        found["agreement"] = same / len(images)
        found["kl"] = divergence / len(images)
    return found


def _stages(squares: dict[str, list[float]]) -> dict[str, list[float]]:
    """The outputs, with only the last block of each stage, under the stage's name."""
    kept = {}
    for name, sums in squares.items():
        stage, _, block = name.partition(".")
        kept[stage if block.isdigit() else name] = sums
    return kept
