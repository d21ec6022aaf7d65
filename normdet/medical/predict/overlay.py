"""A picture of the objects found: thin outlines, with class and score if there is room."""

from collections.abc import Sequence

import contourpy
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from normdet.evaluation.tiles import Detection
from normdet.files.style import brightened, class_colour
from normdet.medical.typeface import typeface

# With up to this many classes the bar also names those without objects.
_ALL_NAMED = 6
# The longer side of a picture: smaller images are enlarged, larger ones reduced.
SMALLEST, LARGEST = 1000, 2400
_FONT_SIZE = 13
BAR = 28


def draw(
    pixels: np.ndarray,
    shape: tuple[int, int],
    detections: Sequence[Detection],
    classes: Sequence[str],
    title: str,
) -> Image.Image:
    """Draw the image with each object's outline, score and class, and the count of each class.

    Args:
        pixels: `(h, w)` or `(h, w, 3)` RGB, uint8; it may be a smaller picture of the image.
        shape: height and width of the image, which the detections are in.
        detections: best score first.
        classes: their names.
        title: of the bar above the image.
    """
    height, width = shape
    scale = min(max(SMALLEST / max(height, width), 1.0), 8.0, LARGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    scaled = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    picture = Image.fromarray((brightened(np.asarray(scaled)) * 255).astype(np.uint8))
    picture = picture.convert("RGB")
    pen = ImageDraw.Draw(picture)
    font = typeface(_FONT_SIZE)
    for one in reversed(detections):
        for line in _outline(one):
            points = [((x + 0.5) * scale, (y + 0.5) * scale) for x, y in line]
            pen.line(points, fill=class_colour(one.category), width=2, joint="curve")
    for one in detections:
        name = classes[one.category] if len(classes) > 1 else ""
        _write_score(pen, one, name, scale, font)
    return _with_bar(picture, detections, classes, title)


def _outline(one: Detection) -> list[np.ndarray]:
    """Lines of points `(x, y)` around the mask, or around the box if there is no mask."""
    if not one.has_mask:
        x0, y0, x1, y1 = (value - 0.5 for value in one.box)
        return [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])]
    # An empty border closes the outline.
    mask = np.pad(one.piece.mask, 1).astype(np.float32)
    lines = contourpy.contour_generator(z=mask).lines(0.5)
    corner = np.array([one.piece.x - 1, one.piece.y - 1])
    return [line + corner for line in lines]


def _write_score(
    pen: ImageDraw.ImageDraw, one: Detection, name: str, scale: float, font: ImageFont.FreeTypeFont
) -> None:
    """Write text in the middle of an object if it fits, so that it covers no neighbour."""
    score = f"{one.score:.2f}"[1:] if one.score < 0.995 else "1"
    x0, y0, x1, y1 = (value * scale for value in one.piece.box)
    for text in dict.fromkeys((f"{name}\n{score}".strip(), score)):
        left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font)
        if x1 - x0 >= (right - left) * 1.4 and y1 - y0 >= (bottom - top) * 1.6:
            place = (x0 + x1) / 2, (y0 + y1) / 2
            pen.text(
                place, text, "white", font, "mm", align="center",
                stroke_width=1, stroke_fill="#303030",
            )  # fmt: skip
            return


def _with_bar(
    picture: Image.Image, detections: Sequence[Detection], classes: Sequence[str], title: str
) -> Image.Image:
    """The picture under a bar with its title and the count of each class in its colour."""
    canvas = Image.new("RGB", (picture.width, picture.height + BAR), "#202020")
    canvas.paste(picture, (0, BAR))
    pen, font = ImageDraw.Draw(canvas), typeface(15)
    x = 8.0
    for index, name in enumerate(classes):
        count = sum(one.category == index for one in detections)
        if count or len(classes) <= _ALL_NAMED:
            text = f"{count} {name}"
            pen.text((x, BAR / 2), text, class_colour(index), font, "lm")
            x += font.getlength(text) + 18
    room = picture.width - x - 8
    if font.getlength(title) > room:
        while title and font.getlength(title + "…") > room:
            title = title[:-1]
        title += "…"
    pen.text((picture.width - 8, BAR / 2), title, "#C0C0C0", font, "rm")
    return canvas
