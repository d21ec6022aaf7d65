"""The table shown at start: each part of a detector, its norm, and whether it trains."""

from dataclasses import dataclass

from torch import nn

from ..layers import BatchStatistics, FrozenBatchNorm2d, NormLayer
from ..parts import PARTS, owner

# The titles of parts, in the order data flows.
TITLES = tuple(dict.fromkeys(part.title for part in PARTS.values()))


@dataclass
class PartRow:
    """One part of a detector.

    Attributes:
        part: its name.
        norm: its norm options, or `"none"`.
        training: `"trained"`, `"frozen"` or `"partly frozen"`, and whether its norms are fixed.
        parameters: the number of its parameters, trained or frozen.
        names: its state-dict keys.
    """

    part: str
    norm: str
    training: str
    parameters: int
    names: list[str]


def part_of(name: str) -> str:
    """The title of the part that a parameter or module belongs to, by its dotted name."""
    return owner(name).title


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
    modules: dict[str, list[nn.Module]] = {part: [] for part in TITLES}
    for name, module in model.named_modules():
        modules[part_of(name)].append(module)
    keys: dict[str, list[str]] = {part: [] for part in TITLES}
    for name in model.state_dict():
        keys[part_of(name)].append(name)
    rows = []
    for part in TITLES:
        count = sum(p.numel() for module in modules[part] for p in module.parameters(recurse=False))
        texts = dict.fromkeys(filter(None, map(_norm_text, modules[part])))
        if count:
            norm = ", ".join(texts) or "none"
            rows.append(PartRow(part, norm, _training(modules[part]), count, keys[part]))
    return rows
