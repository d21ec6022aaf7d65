#!/usr/bin/env python3
"""Write the README's tables anew from results/; with --demo DIR take a finished demo into results/.

python tools/update_readme.py [--demo output/demo]

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; nothing else is touched.
"""

import argparse
import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "results"


def demo_table() -> str:
    """The demo's metrics, and its picture."""
    metrics = json.loads((RESULTS / "demo" / "metrics.json").read_text())
    rows = [
        [norm, *(f"{tasks[task][key]:.1f}" for task in ("bbox", "segm") for key in ("AP", "AP50"))]
        for norm, tasks in metrics.items()
    ]
    picture = "![Predictions of both models beside the truth](results/demo/predictions.png)"
    return f"{_table(['norm', 'box AP', 'box AP50', 'mask AP', 'mask AP50'], rows)}\n\n{picture}"


def norms_table(name: str) -> str:
    """Every option's AP in the demo's detector, from one of its tables."""
    with (RESULTS / name).open(newline="") as file:
        lines = list(csv.DictReader(file))
    keys = ["option", "seed", "box_AP", "mask_AP", "note"]
    rows = [[line[key] or ("" if key == "note" else "none") for key in keys] for line in lines]
    return _table(["option", "seed", "box AP", "mask AP", ""], rows)


def bench_table() -> str:
    """Forward and backward of FRN+TLU on the CPU over its peers, from the newest bench."""
    path = max(RESULTS.glob("bench-ops-*.csv"), key=lambda path: path.stat().st_mtime)
    with path.open(newline="") as file:
        lines = [
            line for line in csv.DictReader(file)
            if (line["op"], line["mode"], line["dtype"]) == ("FRN+TLU", "both", "float32")
            and line["layout"] == "contiguous" and line["median_ms"]
        ]  # fmt: skip
    shapes = list(dict.fromkeys(line["shape"] for line in lines))
    times = {(line["shape"], line["provider"]): float(line["median_ms"]) for line in lines}
    peers = ("nn.GroupNorm+ReLU", "nn.BatchNorm2d+ReLU", "FrozenBN+ReLU", "torch.compile", "timm")
    rows = [
        [shape, *(f"{times[shape, 'normdet auto'] / times[shape, peer]:.2f}" for peer in peers)]
        for shape in shapes
    ]
    return _table(["shape", *(f"over {peer}" for peer in peers)], rows)


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


BLOCKS = {
    "demo": demo_table,
    "norms": partial(norms_table, "quickstart_norms.csv"),
    "evalnorm": partial(norms_table, "evalnorm_nuclei.csv"),
    "bench": bench_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, help="the folder of a finished demo")
    args = parser.parse_args()
    if args.demo:
        (RESULTS / "demo").mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "predictions.png", "curves.png"):
            shutil.copyfile(args.demo / name, RESULTS / "demo" / name)
    readme = REPO / "README.md"
    text = readme.read_text()
    for name, table in BLOCKS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if re.search(pattern, text, re.DOTALL):
            block = f"\n{table()}\n\n"
            text = re.sub(
                pattern, lambda m, block=block: m[1] + block + m[2], text, flags=re.DOTALL
            )
    readme.write_text(text)


if __name__ == "__main__":
    main()
