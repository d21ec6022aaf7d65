"""Split images into train, val and test without dividing a patient, volume or series."""

import random
from collections.abc import Iterable, Sequence

from normdet.errors import NormdetError
from normdet.files.words import listed

SPLITS = ("train", "val", "test")


def assign(
    groups: Sequence[str],
    given: Sequence[str | None],
    val: float,
    test: float,
    seed: int,
    stated: Iterable[str | None] = (),
) -> list[str]:
    """Assign a split to each image.

    Splits of the source are kept if there are several. Images without a split then train, if the
    source has a val or test split. Otherwise groups are drawn at random until their images reach
    the shares asked for; a share above 0 gets at least one group, and train keeps one.

    Args:
        groups: of each image; images of a group go together.
        given: the split the source states for each image, or None.
        val: share of images to validate on.
        test: share of images to test on.
        seed: of the draw.
        stated: splits that the source has, though none of their images may be left.

    Raises:
        NormdetError: no image of the source's own split is left to train on.
    """
    known = {*given, *stated} - {None}
    if len(known) > 1 or (None in given and known - {"train"}):
        splits = [split or "train" for split in given]
        if "train" not in splits:
            raise NormdetError(
                "no image is left to train on: the source puts those that were read in "
                + listed(sorted(set(splits)))
            )
        return splits
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    # In order of appearance: group names can differ from run to run.
    drawn = list(sizes)
    random.Random(seed).shuffle(drawn)
    chosen: dict[str, str] = {}
    for split, share in (("test", test), ("val", val)):
        wanted, count = share * len(groups), 0
        while (
            share > 0 and len(drawn) > 1 and (count == 0 or count + sizes[drawn[-1]] / 2 < wanted)
        ):
            group = drawn.pop()
            chosen[group] = split
            count += sizes[group]
    return [chosen.get(group, "train") for group in groups]


def divided(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """The groups with images in several splits; only the source's own splits can have such."""
    seen: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        seen.setdefault(group, set()).add(split)
    return [group for group, found in seen.items() if len(found) > 1]
