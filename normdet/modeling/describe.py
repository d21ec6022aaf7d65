"""What a detector's parts are normalized by and which of them train: the table shown at start."""

import re
from dataclasses import dataclass

from torch import nn

from ..layers import BatchStatistics, FrozenBatchNorm2d, NormLayer

# Part -> what the names of its parameters begin with, in the order data flows.
_PARTS = {
    "backbone stem": r"backbone\.(bottom_up\.)?stem\.",
    "backbone res2": r"backbone\.(bottom_up\.)?res2\.",
    "backbone res3": r"backbone\.(bottom_up\.)?res3\.",
    "backbone res4": r"backbone\.(bottom_up\.)?res4\.",
    "backbone res5": r"backbone\.(bottom_up\.)?res5\.",
    "backbone": r"backbone\.bottom_up\.",
    "FPN top": r"backbone\.top_block\.",
    "FPN": r"backbone\.",
    "RPN head": r"proposal_generator\.rpn_head\.",
    "res5 on regions": r"roi_heads\.res5\.",
    "box head": r"roi_heads\.box_head\.",
    "box predictor": r"roi_heads\.box_predictor\.",
    "mask head": r"roi_heads\.mask_head\.",
    "keypoint head": r"roi_heads\.keypoint_head\.",
    "RetinaNet head": r"head\.",
    "semantic head": r"sem_seg_head\.",
    "instance head": r"ins_embed_head\.",
    "proposals": r"proposal_generator\.",
    "regions": r"roi_heads\.",
    "detector": r"",
}

PARTS = tuple(_PARTS)


@dataclass
class PartRow:
    """One part of a detector.

    Attributes:
        part: its name.
        norm: its norm options, or `"none"`.
        training: `"trained"`, `"frozen"` or `"partly frozen"`, and whether its norms are fixed.
        parameters: how many numbers it has to train or freeze.
        names: its state-dict keys.
    """

    part: str
    norm: str
    training: str
    parameters: int
    names: list[str]


def part_of(name: str) -> str:
    """The part that a parameter or module of a detector belongs to, by its dotted name."""
    name = name.removeprefix("module.") + "."
    return next(part for part, pattern in _PARTS.items() if re.match(pattern, name))


def _norm_text(module: nn.Module) -> str | None:
    return getattr(module, "option", None) if isinstance(module, NormLayer) else None


def _training(modules: list[nn.Module]) -> str:
    learning = [p.requires_grad for module in modules for p in module.parameters(recurse=False)]
    if learning and not any(learning):
        return "frozen"
    fixed = any(
        isinstance(module, FrozenBatchNorm2d)
        or (isinstance(module, BatchStatistics) and module.is_frozen)
        for module in modules
    )
    return ("trained" if all(learning) else "partly frozen") + (", norms fixed" if fixed else "")


def describe_norms(model: nn.Module) -> list[PartRow]:
    """A row for every part of a detector that has parameters, in the order data flows."""
    modules: dict[str, list[nn.Module]] = {part: [] for part in _PARTS}
    for name, module in model.named_modules():
        modules[part_of(name)].append(module)
    keys: dict[str, list[str]] = {part: [] for part in _PARTS}
    for name in model.state_dict():
        keys[part_of(name)].append(name)
    rows = []
    for part in _PARTS:
        count = sum(p.numel() for module in modules[part] for p in module.parameters(recurse=False))
        texts = dict.fromkeys(filter(None, map(_norm_text, modules[part])))
        if count:
            norm = ", ".join(texts) or "none"
            rows.append(PartRow(part, norm, _training(modules[part]), count, keys[part]))
    return rows
