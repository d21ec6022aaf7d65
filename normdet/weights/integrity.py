"""Check that a weights file is undamaged: by checksums in it or its name, and by its values.

Files that normdet writes are sealed (:mod:`.seal`). Other `.pth` files of torch >= 1.6 have
checksums of their numbers; other formats have none. For these the only signs are the hash in a
published file's name and values that no trained network has.
"""

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from normdet.errors import NormdetError

# torch does not compress its entries; an archive that grows more than this on reading is a bomb.
MOST_GROWTH = 20
# The largest pickle of names and sizes; a detector's takes 0.3 MB.
MOST_PICKLE = 32 << 20
# Trained weights stay far below this; flipping a high bit of a float leads beyond it.
LARGEST = 1e8
# Statistics follow the scale of the inputs, which can be raw pixels of 16 bits.
_FREE = ("running_mean", "running_var", "num_batches_tracked", "steps", "stored", "cell_anchors")


class DamagedFileError(ValueError):
    """The damage of a file, in words that can follow its name."""


def check_name(path: Path) -> None:
    """Compare a file with the hash at the end of its name, if it has one.

    Names of torchvision, timm and mmdetection, such as `resnet50-0676ba61.pth`, end in the first
    digits of the file's SHA-256. Eight digits without a letter are taken for a date. Names of
    detectron2's zoo, such as `model_final_280758.pkl`, end in the first digits of its MD5.

    Raises:
        DamagedFileError: the file has another hash.
    """
    kind, stated = hash_in_name(path)
    if not stated:
        return
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(stated):
        shown = {"sha256": "SHA-256", "md5": "MD5"}[kind]
        raise DamagedFileError(
            f"its name says that its {shown} begins with {stated}, it begins with "
            f"{digest.hexdigest()[: len(stated)]}: fetch it again, or rename it if you changed it"
        )


def hash_in_name(path: Path) -> tuple[str, str]:
    """The kind of hash in a published file's name, and its first digits; `""` for none."""
    if found := re.fullmatch(r"model_final_([0-9a-f]{6})\.pkl", path.name):
        return "md5", found[1]
    found = re.search(r"-([0-9a-f]{8,64})$", path.name.removesuffix(path.suffix))
    return "sha256", "" if not found or found[1].isdecimal() or found[1].isalpha() else found[1]


def check_archive(archive: zipfile.ZipFile, size: int, *, verified: bool) -> None:
    """Verify the checksums of a `.pth`, which torch itself does not.

    Args:
        archive: opened.
        size: of its file, in bytes.
        verified: whether its bytes were verified before, so that reading them again is not needed.

    Raises:
        DamagedFileError: a checksum does not match, or the archive unpacks to far more than it is.
    """
    total = sum(entry.file_size for entry in archive.infolist())
    if total > MOST_GROWTH * size + (1 << 20):
        raise DamagedFileError(
            f"it unpacks to {total / 1e9:.1f} GB from {size / 1e6:.1f} MB, which no weights do"
        )
    for entry in archive.infolist():
        if entry.filename.endswith("data.pkl") and entry.file_size > MOST_PICKLE:
            raise DamagedFileError(
                f"its entry {entry.filename!r} has {entry.file_size / 1e6:.0f} MB of names and "
                "sizes, which no weights need"
            )
    if not verified and (bad := archive.testzip()):
        raise DamagedFileError(f"the checksum of its entry {bad!r} does not match")


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that is no plain array of numbers, before any computation with it.

    Raises:
        NormdetError: sparse, quantized, complex or without numbers, or a view that repeats them.
    """
    if tensor.is_meta:
        raise NormdetError(f"{name!r} has a size and no numbers")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        kinds = {"complex": tensor.is_complex(), "quantized": tensor.is_quantized, "sparse": True}
        kind = next(kind for kind, is_one in kinds.items() if is_one)
        raise NormdetError(f"{name!r} is a {kind} tensor, not a plain one")
    asked, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if asked > max(held, 1 << 20):
        raise NormdetError(f"{name!r} asks for {asked / 1e9:.3f} GB and the file has {held} bytes")


def unusable(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The tensors whose values no trained network has, each with the reason.

    One pass over each, without a copy.
    """
    found = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (float(value) for value in torch.aminmax(tensor.detach()))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            found[name] = "has NaN or infinite values"
        elif name.endswith("running_var") and low < 0:
            found[name] = "has negative variances"
        elif max(-low, high) > LARGEST and not any(word in name for word in _FREE):
            found[name] = f"has values up to {max(-low, high):.2g}, which no trained network has"
    return found
