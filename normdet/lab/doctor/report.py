"""Write doctor.json, doctor.png and doctor.html."""

import json
from collections.abc import Sequence
from pathlib import Path

from normdet.files import page
from normdet.files.atomic import atomic_file
from normdet.files.words import first_of
from normdet.lab.doctor.figure import draw_layers

from .examination import Examination
from .rows import FITS, NOISY, OFF, Row
from .verdict import Invocation, next_commands, reading, verdict

HEAD = (
    "stage", "distance", "verdict", "channels off", "mean shift", "variance ratio",
    "noise at 1", "noise at 2", "clamped", "dead",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row's numbers as text, in the order of `HEAD`."""
    return [
        row.name,
        _number(row.distance),
        row.level,
        _percent(row.beyond),
        _number(row.shift),
        _number(row.variance_ratio),
        _number(row.noise.get(1)),
        _number(row.noise.get(2)),
        _percent(row.clamped),
        _percent(row.dead) + (", saturated" if row.saturated else ""),
    ]


def _layer_cells(row: Row) -> list[str]:
    short = row.name.removeprefix("backbone.").removeprefix("bottom_up.")
    return [short, *cells(row)[1:]]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def write_report(found: Examination, call: Invocation, notes: Sequence[str], folder: Path) -> None:
    """Write the three files into `folder`, which exists."""
    said, commands = verdict(found, call), next_commands(found, call)
    content = found.to_dict() | {"notes": list(notes), "verdict": said, "commands": commands}
    picture = folder / "doctor.png"
    draw_layers(found.layers, FITS, OFF, NOISY, picture)
    source = call.dataset or first_of(call.images)
    what = f"{found.images} images of {source}, seen by {call.weights}"
    document = page.page(
        "Does the stored norm fit these images?",
        [
            page.verdict(_sentence(said)),
            page.paragraph(what, note=True),
            *(page.paragraph(_sentence(note)) for note in notes),
            page.heading("Layer by layer"),
            page.picture(picture, "distance, noise and dead channels of every layer"),
            page.paragraph(reading(), note=True),
            page.heading("Stage by stage"),
            page.table(HEAD, map(cells, found.stages)),
            page.heading("What to run next"),
            page.commands(commands),
            page.heading("Every layer"),
            page.table(("layer", *HEAD[1:]), map(_layer_cells, found.layers)),
        ],
    )
    for name, text in (
        ("doctor.json", json.dumps(content, indent=1) + "\n"),
        ("doctor.html", document),
    ):
        with atomic_file(folder / name) as file:
            file.write(text.encode())


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
