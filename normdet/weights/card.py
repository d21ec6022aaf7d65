"""The model card: a page beside a converted or exported model that says what it is."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tabulate import tabulate

from normdet.files.atomic import atomic_file
from normdet.files.versions import as_text, installed

from .facts import describe

# The packages whose versions a card names, if they are installed.
_PACKAGES = ("normdet", "torch", "torchvision", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Measurement:
    """One table of what was measured.

    Attributes:
        what: the table's heading: what was measured, and on which images.
        rows: a mapping for each line, all with the same columns. Numbers are shown to three digits.
    """

    what: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Card:
    """The contents of a model card.

    Attributes:
        summary: one sentence: what the file holds.
        source: the file it was made from.
        command: the command that made it, as typed.
        facts: titles and texts to add to those from the config.
        measured: the tables. Without any, the card says that nothing was measured.
        limits: what a user must know before relying on it, a sentence each.
        use: commands or code that use the file, line by line.
        language: of `use`.
    """

    summary: str
    source: str | Path
    command: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    measured: Sequence[Measurement] = ()
    limits: Sequence[str] = ()
    use: Sequence[str] = ()
    language: str = "bash"


def write_card(file: str | Path, cfg: CfgNode, card: Card) -> Path:
    """Write the card of a model file beside it, as `FILE.md`.

    Folders are not named, since their names can name patients. Both files are read once for their
    SHA-256.

    Args:
        file: the model, written already.
        cfg: the config of the model in `file`.
        card: the other contents.

    Returns:
        The card's path.

    Raises:
        OSError: the card cannot be written.
    """
    file, source = Path(file), Path(card.source)
    made_with = {"made from": source.name, **_digest(source, "its SHA-256")}
    if card.command:
        made_with["made by"] = f"`{card.command}`"
    made_with["versions"] = as_text(installed(*_PACKAGES))
    parts = [
        f"# {file.name}",
        card.summary,
        "## What it is",
        _pairs({**_digest(file, "SHA-256"), **_model(cfg), **card.facts}),
        "## Where it is from",
        _pairs(made_with),
        "The licence and the training images are those of the file it was made from.",
        "## How it was measured",
        *_tables(card.measured),
    ]
    if card.limits:
        parts += ["## Limits", "\n".join(f"- {limit}" for limit in card.limits)]
    if card.use:
        parts += ["## Use", "\n".join([f"```{card.language}", *card.use, "```"])]
    path = Path(f"{file}.md")
    with atomic_file(path) as out:
        out.write(("\n\n".join(parts) + "\n").encode())
    return path


def _model(cfg: CfgNode) -> dict[str, str]:
    norms = describe(cfg)["norms"]
    options: dict[str, list[str]] = {}
    for key, option in norms.items():
        if option and option != "as backbone":
            options.setdefault(option, []).append(f"`{key}`")
    heads = cfg.MODEL.RETINANET if cfg.MODEL.META_ARCHITECTURE.endswith("RetinaNet") else None
    classes = (heads or cfg.MODEL.ROI_HEADS).NUM_CLASSES
    return {
        "architecture": f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.MODEL.BACKBONE.NAME}",
        "norms": "; ".join(f"{o}: {', '.join(k)}" for o, k in options.items()) or "none",
        "classes": str(classes),
        "input": f"{cfg.INPUT.FORMAT}, mean {_numbers(cfg.MODEL.PIXEL_MEAN)}, "
        f"std {_numbers(cfg.MODEL.PIXEL_STD)}, short side {cfg.INPUT.MIN_SIZE_TEST}",
    }


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _digest(path: Path, title: str) -> dict[str, str]:
    """The hash of a local file; `""` for an address in a model zoo."""
    if not path.is_file():
        return {}
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {title: f"`{digest.hexdigest()}`"}


def _tables(measured: Sequence[Measurement]) -> list[str]:
    tables = [part for found in measured if found.rows for part in _table(found)]
    return tables or ["Nothing was measured."]


def _table(found: Measurement) -> tuple[str, str]:
    rows = [{key: _cell(value) for key, value in row.items()} for row in found.rows]
    table = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    return f"{found.what}:", table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _pairs(pairs: Mapping[str, str]) -> str:
    rows = [(title, _cell(text)) for title, text in pairs.items()]
    return tabulate(rows, headers=["", ""], tablefmt="github", disable_numparse=True)
