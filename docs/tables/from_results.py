"""Tables of what was measured, from the CSV files in results/."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

from normdet.lab.compare import analysis
from normdet.lab.compare.runs import TEST, Run, primary_metric, read_table
from normdet.lab.compare.stats import Estimate, paired, signed
from normdet.lab.report.figures import Panel, draw_over_batch

from .markdown import table

REPO = Path(__file__).resolve().parents[2]
RESULTS = REPO / "results"


def demo() -> str:
    """The demo's metrics, and its picture."""
    metrics = json.loads((RESULTS / "demo" / "metrics.json").read_text())
    rows = [
        [norm, *(f"{tasks[task][key]:.1f}" for task in ("bbox", "segm") for key in ("AP", "AP50"))]
        for norm, tasks in metrics.items()
    ]
    picture = "![Predictions of both models beside the truth](results/demo/predictions.png)"
    return f"{table(['norm', 'box AP', 'box AP50', 'mask AP', 'mask AP50'], rows)}\n\n{picture}"


def norms(name: str) -> str:
    """AP of the quickstart's detector under every option, from one of its tables."""
    keys = ["option", "seed", "box_AP", "mask_AP", "note"]
    rows = [
        [line[key] or ("" if key == "note" else "none") for key in keys]
        for line in _lines(RESULTS / name)
    ]
    return table(["option", "seed", "box AP", "mask AP", ""], rows)


def bench() -> str:
    """Forward and backward of FRN+TLU over its peers, on every CPU that was measured."""
    parts = []
    for path in sorted(RESULTS.rglob("bench-ops-*.csv")):
        lines = _lines(path)
        parts += [f"On {_about(lines[0])}:", _ratios(lines)]
    return "\n\n".join(parts)


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _about(line: dict[str, str]) -> str:
    return f"{line['machine']} ({line['versions']}; {line['date']})"


def _ratios(lines: list[dict[str, str]]) -> str:
    lines = [
        line for line in lines
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
    return table(["shape", *(f"over {peer}" for peer in peers)], rows)


def operators() -> str:
    """Forward and backward of every operator, and its time over that of its fastest peer."""
    parts = []
    for path in sorted(RESULTS.rglob("bench-ops-*.csv")):
        lines = _lines(path)
        parts += [f"On {_about(lines[0])}:", _operators(lines)]
    return "\n\n".join(parts)


def _operators(lines: list[dict[str, str]]) -> str:
    times: dict[tuple[str, str], dict[str, float]] = {}
    for line in lines:
        kind = line["mode"], line["dtype"], line["layout"]
        # Weights have their own shapes. A provider without a peer has no ratio.
        if kind == ("both", "float32", "contiguous") and line["median_ms"] and line["op"] != "WS":
            found = times.setdefault((line["op"], line["shape"]), {})
            found[line["provider"]] = float(line["median_ms"])
    ops, shapes = (list(dict.fromkeys(key[place] for key in times)) for place in (0, 1))
    rows = [[op, *(_beside_peers(times.get((op, shape), {})) for shape in shapes)] for op in ops]
    return table(["", *shapes], rows)


def _beside_peers(times: dict[str, float]) -> str:
    """Our time, and its ratio to the fastest peer's."""
    ours = next((time for name, time in times.items() if name.startswith("normdet auto")), None)
    peers = [time for name, time in times.items() if not name.startswith("normdet")]
    if ours is None:
        return ""
    return f"{ours:.2f} ({ours / min(peers):.2f})" if peers else f"{ours:.2f}"


def step() -> str:
    """A whole training step under each norm over one under FrozenBN, on every CPU measured."""
    parts = []
    for path in sorted(RESULTS.rglob("bench-step-*.csv")):
        lines = _lines(path)
        parts += [f"On {_about(lines[0])}:", _steps(lines)]
    return "\n\n".join(parts)


def _steps(lines: list[dict[str, str]]) -> str:
    columns = (
        ("training step", "median_ms"), ("training step", "kept_bytes"),
        ("training step", "peak_bytes"), ("inference", "median_ms"), ("largest batch", ""),
    )  # fmt: skip
    found = {(row["op"], row["provider"]): row for row in lines}
    frozen = lines[0]["provider"]
    rows = []
    for norm in dict.fromkeys(row["provider"] for row in lines):
        cells = []
        for op, column in columns:
            # With random weights FrozenBN finds another number of objects, which changes its time.
            base = "BN" if op == "inference" else frozen
            if not column:
                cells.append(found.get((op, norm), {}).get("largest_batch", ""))
            elif op == "inference" and norm == frozen:
                cells.append("")
            else:
                ratio = float(found[op, norm][column]) / float(found[op, base][column])
                cells.append(f"{ratio:.2f}")
        rows.append([norm, *cells])
    headers = ["norm", "time", "kept for backward", "peak", "inference, over BN", "largest batch"]
    return table(headers, rows)


_METHODS = (
    "original", "copy", "closed form", "calibrated", "distilled", "calibrated, keep 0.9",
    "distilled, keep 0.9",
)  # fmt: skip


def _conversion(model: str) -> dict[tuple[str, str, str], list[float]]:
    """Values over seeds by target, method and metric, of one model of results/conversion.csv."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in _lines(RESULTS / "conversion.csv"):
        if row["model"].startswith(model):
            key = row["target"], row["method"], row["metric"]
            found.setdefault(key, []).append(float(row["value"]))
    return found


def _spread(values: list[float] | None, digits: int) -> str:
    """The mean, and the lowest and highest seed where there are several."""
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.{digits}f}"
    ends = f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return mean + (ends if len(values) > 1 else "")


def agreement() -> str:
    """First names that an ImageNet network keeps, and the error of its last features."""
    found = _conversion("resnet50-imagenet")
    targets = list(dict.fromkeys(target for target, *_ in found))
    methods = [m for m in _METHODS if any(method == m for _, method, _ in found)]
    rows = [[t, *(_spread(found.get((t, m, "agreement")), 2) for m in methods)] for t in targets]
    errors = [
        [f"{t}, error of res5", *(_spread(found.get((t, m, "error res5")), 2) for m in methods)]
        for t in targets
    ]
    return table(["target", *methods], rows + errors)


_WARM = re.compile(r"distilled, (\d+) images, (\d+) steps(?:, keep (.*))?")


def warm() -> str:
    """First names that FRN+TLU keeps as a function of the images and steps of distillation."""
    found = {}
    for (target, method, metric), values in _conversion("resnet50-imagenet").items():
        match = _WARM.fullmatch(method)
        if match and (target, metric) == ("FRN+TLU", "agreement"):
            images, steps, keep = match.groups(default="")
            found[int(images), int(steps), keep] = values
    if not found:
        return "Planned and not run yet."
    columns = sorted({(keep, steps) for _, steps, keep in found})
    rows = [
        [str(images), *(_spread(found.get((images, steps, keep)), 2) for keep, steps in columns)]
        for images in sorted({images for images, *_ in found})
    ]
    heads = [f"{steps} steps" + (f", keep {keep}" if keep else "") for keep, steps in columns]
    return table(["images", *heads], rows)


def kept() -> str:
    """AP of detectors trained with BN, after each conversion without labels."""
    found = _conversion("R18-FPN, BN")
    rows = []
    for target, method in dict.fromkeys((t, m) for t, m, _ in found):
        values = [found.get((target, method, f"{kind} AP")) for kind in ("box", "mask")]
        kept = [
            f"{100 * sum(v) / len(v) / (sum(o) / len(o)):.0f}%"
            for v, o in (
                (value, found["BN", "original", f"{kind} AP"])
                for value, kind in zip(values, ("box", "mask"), strict=True)
            )
        ]
        texts = [f"{_spread(v, 1)}, {k}" for v, k in zip(values, kept, strict=True)]
        rows.append([target, method, *texts])
    rows.sort(key=lambda row: (row[0] != "BN", row[0], _METHODS.index(row[1])))
    return table(["norm", "converted by", "box AP, share kept", "mask AP, share kept"], rows)


_DATA = {"nuclei": ("nuclei", "mask"), "bccd": ("blood cells", "box")}
_SIZES = (1, 2)
_COLUMNS = [(dataset, size) for dataset in _DATA for size in _SIZES]


def finetune() -> str:
    """The final AP of each kind of start, less frozen BN's too, and the picture of AP by step."""
    values: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in _lines(RESULTS / "conversion.csv"):
        task, _, iteration = row["metric"].partition(" AP @")
        if row["model"] == "R50-FPN" and task == _DATA[row["dataset"]][1]:
            key = row["dataset"], row["method"], int(iteration)
            values.setdefault(key, {})[row["seed"]] = float(row["value"])
    last = max(iteration for *_, iteration in values)
    arms = list(dict.fromkeys(arm for _, arm, _ in values))
    panels = [_ways(name, arms, values) for name in _DATA]
    draw_over_batch(panels, RESULTS / "conversion_finetune.png")
    rows = [
        [arm, *(cell for name in _DATA for cell in _over(values, name, arm, last))] for arm in arms
    ]
    headers = ["backbone and its start"]
    for name, task in _DATA.values():
        headers += [f"{name}, {task} AP", "over FrozenBN"]
    picture = "![AP against iterations from each kind of start](results/conversion_finetune.png)"
    return f"{table(headers, rows)}\n\n{picture}"


def _ways(dataset: str, arms: list[str], values: dict) -> Panel:
    series: dict[str, list] = {}
    for arm in arms:
        for (name, method, iteration), found in values.items():
            if (name, method) == (dataset, arm):
                v = found.values()
                series.setdefault(arm, []).append((iteration, sum(v) / len(v), min(v), max(v)))
    name, task = _DATA[dataset]
    return Panel(name, f"{task} AP", series, xlabel="iterations")


def _over(values: dict, dataset: str, arm: str, last: int) -> tuple[str, str]:
    """AP over the seeds, and the paired difference to frozen BN with its 95% interval."""
    found, base = values.get((dataset, arm, last)), values[dataset, "FrozenBN", last]
    if not found:
        return "", ""
    if arm == "FrozenBN":
        return _spread(list(found.values()), 1), ""
    seeds = [seed for seed in found if seed in base]
    less = paired([found[seed] for seed in seeds], [base[seed] for seed in seeds]).estimate
    return _spread(list(found.values()), 1), _interval(less)


def medical() -> str:
    """AP and AP50 of every norm on the medical sets, and what some of the models predict."""
    lines = _lines(RESULTS / "medical.csv")
    found = {
        (init, dataset): _medical(
            [line for line in lines if (line["init"], line["dataset"]) == (init, dataset)],
            _DATA[dataset][1],
        )
        for init, dataset in dict.fromkeys((line["init"], line["dataset"]) for line in lines)
    }
    rows = []
    for start in dict.fromkeys(init for init, _ in found):
        cells = [found.get((start, dataset), {}) for dataset in _DATA]
        norms = dict.fromkeys(norm for part in cells for norm, _ in part)
        for norm in sorted(norms, key=_NORMS.index):
            texts = [part.get((norm, size), "not run") for part in cells for size in _SIZES]
            rows.append([start, norm, *texts])
    pictures = [
        f"![What models of three norms find in {dataset}](results/{path.name})"
        for dataset in _DATA
        if (path := RESULTS / f"medical_{dataset}.png").exists()
    ]
    return "\n\n".join([table(["start", "norm", *_column_heads()], rows), *pictures])


# The order in tables: common norms first, then their derivatives.
_NORMS = (
    "FrozenBN", "FrozenBN as is", "FrozenBN 2fc", "BN", "GN", "GN+WS", "FRN+TLU", "GN, backbone",
    "FRN+TLU, backbone",
)  # fmt: skip


def _medical(lines: Sequence[dict[str, str]], task: str) -> dict[tuple[str, int], str]:
    """Cells by norm and batch size: AP with its 95% interval, and AP50."""
    runs = [
        Run.from_row({**line, "role": TEST, "run": f"{line['norm']} at {line['lr']}"})
        for line in lines
    ]
    ap50 = {(g.norm, g.batch_size): g for g in analysis.groups(runs, f"{task}_AP50")}
    return {
        (g.norm, g.batch_size): _ap_cell(g, ap50[g.norm, g.batch_size])
        for g in analysis.groups(runs, f"{task}_AP")
        if g.values or g.diverged
    }


def _ap_cell(ap: analysis.Group, ap50: analysis.Group) -> str:
    if not ap.whole:
        return ap.lacks
    text = f"{_mean(ap)}; {ap50.estimate.mean:.0f}"
    return f"{text} ({ap.lacks})" if ap.lacks else text


def _mean(group: analysis.Group) -> str:
    """The mean and the half width of its 95% interval, or the reason for its absence."""
    if not group.whole:
        return group.lacks
    half = "" if group.estimate.half is None else f" ± {group.estimate.half:.1f}"
    return f"{group.estimate.mean:.1f}{half}"


def _at(metric: str, size: int) -> str:
    """The head of a column."""
    return f"{metric.replace('_', ' ')}, {size} image{'s' * (size > 1)}"


def _column_heads() -> list[str]:
    return [
        _at(f"{', '.join(_DATA[dataset])} AP", size)
        for dataset, size in _COLUMNS
    ]


def pretrained() -> str:
    """Accuracy on crops by norm and batch size, the falls from the largest, and the picture."""
    path = RESULTS / "pretrain.csv"
    if not path.is_file():
        return "Planned and not run yet."
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in _lines(path):
        found.setdefault((row["norm"], int(row["batch"])), {})[row["seed"]] = float(row["top-1"])
    norms, sizes = list(dict.fromkeys(n for n, _ in found)), sorted({b for _, b in found})
    series = {
        norm: [
            (size, sum(v) / len(v), min(v), max(v))
            for size in sizes if (v := list(found.get((norm, size), {}).values()))
        ]
        for norm in norms
    }  # fmt: skip
    draw_over_batch([Panel("", "top-1 accuracy", series)], RESULTS / "pretrain.png")
    of_bn = _fall(found, "BN", sizes)
    rows = []
    for norm in norms:
        cells = [_spread(list(found.get((norm, size), {}).values()) or None, 1) for size in sizes]
        fall = _fall(found, norm, sizes)
        less = ""
        if seeds := [seed for seed in fall if seed in of_bn and norm != "BN"]:
            less = _interval(paired(*([f[seed] for seed in seeds] for f in (fall, of_bn))).estimate)
        rows.append([norm, *cells, less])
    heads = ["norm", *(f"{size} images a step" for size in sizes), "fall less BN's"]
    picture = "![Accuracy on crops against images a step](results/pretrain.png)"
    return f"{table(heads, rows)}\n\n{picture}"


def _fall(found: dict, norm: str, sizes: list[int]) -> dict[str, float]:
    """By seed, how much accuracy falls from the largest batch size to the smallest."""
    small, large = (found.get((norm, size), {}) for size in (sizes[0], sizes[-1]))
    return {seed: large[seed] - small[seed] for seed in large if seed in small}


def crossed() -> str:
    """What the work of cross-iteration BN adds to a step under BN."""
    values: dict[str, dict[str, float]] = {}
    for row in _lines(RESULTS / "cross_iteration.csv"):
        values.setdefault(row["backbone"], {})[row["measure"]] = float(row["value"])
    rows = []
    for backbone, found in values.items():
        plain, crossed, kept = found.values()
        more = f"{100 * (crossed / plain - 1):.0f}%"
        rows.append([backbone, f"{plain:.2f} s", f"{crossed:.2f} s", more, f"{kept / 1e3:.2f} GB"])
    heads = ["backbone", "a step of BN", "with the work of the method", "more", "kept"]
    return table(heads, rows)


def doctor() -> str:
    """How far stages of an ImageNet network lie from what it has stored, by kind of images."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for line in _lines(RESULTS / "doctor.csv"):
        found.setdefault((line["images"], line["short_side"]), []).append(line)
    rows = []
    for (images, side), lines in found.items():
        distances = [float(line["distance"]) for line in lines]
        levels = ", ".join(dict.fromkeys(line["level"] for line in lines))
        spread = f"{min(distances):.2f} to {max(distances):.2f}"
        noise = f"{max(float(line['noise_2']) for line in lines):.2f}"
        rows.append([images, side, spread, levels, noise])
    return table(["images", "pixels", "distance", "verdicts", "highest noise at 2"], rows)


def comparisons() -> str:
    """Each arm's mean and its difference to the baseline, for every comparison with a report."""
    parts = []
    for path in sorted((RESULTS / "compare").glob("*/report.md")):
        text = path.read_text()
        baseline = re.search(r"^## Differences to (.+)$", text, re.MULTILINE)[1]
        runs = read_table(path.with_name("runs.csv"))
        metric = primary_metric(runs)
        groups = analysis.groups(runs, metric)
        sizes = sorted({group.batch_size for group in groups})
        cells = {(g.norm, g.batch_size): [_mean(g), ""] for g in groups}
        for one in analysis.against(groups, baseline):
            cells[one.norm, one.batch_size][1] = _interval(one.difference.estimate)
        rows = [
            [norm, *(cell for size in sizes for cell in cells.get((norm, size), ["not run", ""]))]
            for norm in dict.fromkeys(norm for norm, _ in cells)
        ]
        heads = [_at(metric, size) for size in sizes]
        columns = [head for one in heads for head in (one, f"less {baseline}")]
        title = text.partition("\n")[0].removeprefix("# Which norm: ")
        link = f"[{path.parent.name}](reports/{path.parent.name}.md)"
        parts += [f"**{link}**: {title}", table(["", *columns], rows)]
    return "\n\n".join(parts)


def reports() -> str:
    """The comparisons that have a report."""
    rows = []
    for path in sorted((RESULTS / "compare").glob("*/report.md")):
        lines = path.read_text().splitlines()
        title = lines[0].removeprefix("# Which norm: ")
        rows.append([f"[{title}]({path.parent.name}.md)", lines[2].partition(": ")[0]])
    return table(["data", "norms and runs"], rows)


# From results/PROTOCOL.md: the start, the baseline, the runs, and the primary contrasts.
_TABLES = (
    ("random weights", "GN", ("nuclei", "blood_cells"), ("BN", "FRN+TLU")),
    ("ImageNet", "FrozenBN", ("nuclei_pretrained", "blood_cells_pretrained"),
     ("BN", "GN", "GN+WS", "FRN+TLU", "FrozenBN as is", "FrozenBN 2fc")),
)  # fmt: skip


def contrasts(planned_alone: bool = False) -> str:
    """AP of every norm less the baseline's, seed by seed, with 95% intervals; * past Holm's."""
    rows = []
    for start, baseline, names, primary in _TABLES:
        found = [_contrasts(name, baseline, primary) for name in names]
        for norm in dict.fromkeys(norm for cells in found for norm, _ in cells):
            if planned_alone and norm not in primary:
                continue
            cells = [cells.get((norm, size), "") for cells in found for size in _SIZES]
            rows.append([start, f"{norm} less {baseline}", *cells])
    return table(["start", "", *_column_heads()], rows)


# Table 4 of results/PROTOCOL.md compares the learnable arms with the best of these.
_FROZEN = ("FrozenBN", "FrozenBN as is", "FrozenBN 2fc")
_LEARNED = ("GN", "FRN+TLU")
_STARTS = ("nuclei_start", "blood_cells_start")


def starts() -> str:
    """AP of every arm that starts from data, and the learnable ones less the best frozen one."""
    parts = []
    for name in _STARTS:
        path = RESULTS / "compare" / name / "runs.csv"
        if path.is_file():
            parts += [f"**{name.partition('_start')[0].replace('_', ' ')}**:", _start(path)]
    return "\n\n".join(parts)


def _start(path: Path) -> str:
    runs = read_table(path)
    metric = primary_metric(runs)
    groups = analysis.groups(runs, metric)
    sizes = sorted({group.batch_size for group in groups})
    planned = len(_STARTS) * len(_SIZES) * len(_LEARNED)
    cells = {(g.norm, g.batch_size): [_seeds(g), ""] for g in groups}
    for one in analysis.against_best(groups, _FROZEN, _LEARNED, planned):
        cells[one.norm, one.batch_size][1] = f"{_starred(one)}, {one.other}"
    norms = dict.fromkeys(norm for norm, _ in cells)
    rows = [
        [norm, *(cell for size in sizes for cell in cells[norm, size])]
        for norm in sorted(norms, key=lambda norm: norm not in _FROZEN)
    ]
    heads = [_at(metric, size) for size in sizes]
    return table(["", *(h for head in heads for h in (head, "less the best frozen arm"))], rows)


def _seeds(group: analysis.Group) -> str:
    return f"{_mean(group)}, {len(group.values)} seeds" if group.whole else group.lacks


def tiles() -> str:
    """What a mosaic's tiles find, by whose statistics they take."""
    heads = {
        "norm": "norm", "statistics": "statistics", "box_AP": "box AP", "box_AP50": "AP50",
        "objects_per_empty_square": "false objects per empty square",
        "found_by_one_tile": "found by one of two tiles", "rms_ratio_median": "off by, median",
        "rms_ratio_p95": "95%", "seconds": "s",
    }  # fmt: skip
    lines = _lines(RESULTS / "tile_statistics.csv")
    rows = [[line[key] for key in heads] for line in lines]
    return table(list(heads.values()), rows)


def ablations() -> str:
    """Mask AP of FRN+TLU's variants on nuclei, and less FRN+TLU's own, seed by seed."""
    runs = read_table(RESULTS / "compare" / "frn" / "runs.csv")
    groups = analysis.groups(runs, primary_metric(runs))
    less = {c.norm: c for c in analysis.against(groups, "FRN+TLU")}
    rows = [
        [
            group.norm,
            _mean(group),
            _starred(less[group.norm]) if group.norm in less else "",
        ]
        for group in sorted(groups, key=lambda group: group.norm != "FRN+TLU")
    ]
    return table(["", "mask AP", "less FRN+TLU"], rows)


def _starred(contrast: analysis.Contrast) -> str:
    return _interval(contrast.difference.estimate) + "*" * contrast.significant


def _contrasts(name: str, baseline: str, primary: Sequence[str]) -> dict[tuple[str, int], str]:
    """Rows by norm and batch size; contrasts that are not primary are not tested."""
    runs = read_table(RESULTS / "compare" / name / "runs.csv")
    groups = analysis.groups(runs, primary_metric(runs))
    tested = analysis.against([g for g in groups if g.norm in (baseline, *primary)], baseline)
    apart = {(c.norm, c.batch_size) for c in tested if c.significant}
    return {
        (c.norm, c.batch_size): _interval(c.difference.estimate)
        + ("*" if (c.norm, c.batch_size) in apart else "")
        for c in analysis.against(groups, baseline)
    }


def _interval(less: Estimate) -> str:
    interval = "" if less.half is None else f" ({signed(less.low)} to {signed(less.high)})"
    return f"{signed(less.mean)}{interval}"
