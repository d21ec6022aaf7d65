"""One picture of a data set with its annotations, to look at before training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image, ImageDraw

from normdet.data.image_file import read_pages
from normdet.files.style import class_colour
from normdet.medical.prepare.write import Written
from normdet.medical.typeface import typeface

_CELL, _COLUMNS, _MOST = 330, 5, 20
_GAP, _CAPTION, _HEAD = 10, 22, 64
_PAPER, _INK, _FAINT = "#FFFFFF", "#202020", "#707070"
# Masks of images with more pixels would take seconds each, and look like dots.
_OUTLINED = 20_000_000
# This many pixels along the shorter side suffice for a cell.
_SEEN = 4 * _CELL
# Images whose grey values stay below this are brightened.
_DARK = 40
# The legend names up to this many classes, and counts the rest.
_NAMED = 8


def draw(
    parts: Mapping[str, Sequence[Written]], folder: Path, categories: Sequence[str], path: Path
) -> None:
    """Draw images of every split, evenly spaced and with objects first, into the PNG `path`.

    Args:
        parts: the images by split.
        folder: where they lie.
        categories: each gets a colour.
        path: the file to write.
    """
    chosen = _choose(parts)
    colours = {name: class_colour(index) for index, name in enumerate(categories)}
    if len(categories) == 1:
        # With one class, each instance gets a colour, so that touching ones can be told apart.
        colours = {}
    cells = [_cell(folder, split, item, colours) for split, item in chosen]
    columns = min(_COLUMNS, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    width = max(columns * (_CELL + _GAP) + _GAP, 3 * _CELL)
    sheet = Image.new("RGB", (width, _HEAD + sum(heights) + _GAP * (len(rows) + 1)), _PAPER)
    _head(sheet, parts, categories, colours)
    top = _HEAD
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP + column * (_CELL + _GAP), top))
        top += height + _GAP
    sheet.save(path, compress_level=6)


def _choose(parts: Mapping[str, Sequence[Written]]) -> list[tuple[str, Written]]:
    """Choose up to 20 images, about the share of each split, but at least some of each."""
    total = sum(map(len, parts.values()))
    chosen = []
    for split, members in parts.items():
        share = max(min(len(members), 4), round(_MOST * len(members) / total))
        filled = [item for item in members if item.objects] or list(members)
        places = np.linspace(0, len(filled) - 1, min(share, len(filled))).round().astype(int)
        chosen += [(split, filled[place]) for place in dict.fromkeys(places.tolist())]
    while len(chosen) > _MOST:
        chosen.pop(next(i for i, (split, _) in enumerate(chosen) if split == chosen[0][0]))
    return chosen


def _cell(folder: Path, split: str, item: Written, colours: Mapping[str, str]) -> Image.Image:
    picture = picture_of(folder / item.file_name)
    scale = min(_CELL / item.width, _CELL / item.height)
    size = max(1, round(item.width * scale)), max(1, round(item.height * scale))
    picture = picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX)
    pixels = np.array(picture)
    for index, entry in enumerate(item.objects):
        if _is_outlined(entry, item):
            pixels[_outline(entry, item, size)] = _rgb(_colour(entry, index, colours))
    picture = Image.fromarray(pixels)
    lines = ImageDraw.Draw(picture)
    for index, entry in enumerate(item.objects):
        if not _is_outlined(entry, item):
            x, y, width, height = (value * scale for value in entry["bbox"])
            box = (x, y, max(x + width - 1, x), max(y + height - 1, y))
            lines.rectangle(box, outline=_colour(entry, index, colours), width=2)
    cell = Image.new("RGB", (_CELL, size[1] + _CAPTION), _PAPER)
    cell.paste(picture, ((_CELL - size[0]) // 2, _CAPTION))
    count = len(item.objects)
    ending = f"  {count} object{'s' if count != 1 else ''}"
    text = ImageDraw.Draw(cell)
    font = typeface(13)
    room = _CELL - text.textlength(f"{split}{ending}   ", font=font)
    name = _shortened(item.file_name, text, font, room)
    text.text((0, 3), split, fill=_INK, font=font)
    text.text((text.textlength(f"{split}  ", font=font), 3), name + ending, _FAINT, font=font)
    return cell


def picture_of(path: Path) -> Image.Image:
    """An image of any depth as 8 bits for display; dark images are brightened."""
    pixels = read_pages(path, max_pixels=1 << 40)[0]
    # The steps below need many times the image's memory: sample a large image.
    step = max(1, min(pixels.shape[:2]) // _SEEN)
    pixels = np.ascontiguousarray(pixels[::step, ::step])
    if pixels.dtype != np.uint8:
        values = pixels.astype(np.float32)
        low, high = np.nanpercentile(values, (0.5, 99.5))
        values = np.nan_to_num((values - low) / max(high - low, 1e-6))
        pixels = (values.clip(0, 1) * 255).astype(np.uint8)
    elif np.median(pixels) < _DARK:
        values = pixels / max(np.percentile(pixels, 99.8), 1)
        pixels = (values.clip(0, 1) ** 0.6 * 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def _is_outlined(entry: dict, item: Written) -> bool:
    """Whether a mask is drawn; on very large images its box is drawn instead."""
    return "segmentation" in entry and item.height * item.width <= _OUTLINED


def _outline(entry: dict, item: Written, size: tuple[int, int]) -> np.ndarray:
    """The inner edge of a mask at the size of the drawing: `(H, W)` bool."""
    mask = entry["segmentation"]
    if not isinstance(mask, dict):
        mask = mask_util.merge(mask_util.frPyObjects(mask, item.height, item.width))
    full = mask_util.decode(mask)
    drawn = Image.fromarray(full * 255).resize(size, Image.Resampling.BILINEAR)
    inside = np.pad(np.array(drawn) >= 128, 1)
    eroded = inside[1:-1, 1:-1].copy()
    eroded &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return inside[1:-1, 1:-1] & ~eroded


def _head(
    sheet: Image.Image,
    parts: Mapping[str, Sequence[Written]],
    categories: Sequence[str],
    colours: Mapping[str, str],
) -> None:
    text = ImageDraw.Draw(sheet)
    counts = ",  ".join(
        f"{name} {len(members)} images, {sum(len(item.objects) for item in members)} objects"
        for name, members in parts.items()
    )
    text.text((_GAP, 8), counts, fill=_INK, font=typeface(18))
    x, font = _GAP, typeface(14)
    for name in categories[:_NAMED]:
        if name in colours:
            text.rectangle((x, 39, x + 12, 51), fill=colours[name], outline=_FAINT)
            x += 18
        text.text((x, 36), name, fill=_INK, font=font)
        x += 18 + int(text.textlength(name, font=font))
    if len(categories) > _NAMED:
        text.text((x, 36), f"and {len(categories) - _NAMED} more", fill=_FAINT, font=font)


def _shortened(name: str, text: ImageDraw.ImageDraw, font, room: float) -> str:
    """As much of a name's end as fits; the beginning is only the folder's."""
    if text.textlength(name, font=font) <= room:
        return name
    while name and text.textlength("…" + name, font=font) > room:
        name = name[1:]
    return "…" + name


def _colour(entry: dict, index: int, colours: Mapping[str, str]) -> str:
    return colours.get(entry["category"], class_colour(index % 6))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
