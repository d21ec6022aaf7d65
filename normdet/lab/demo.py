"""`normdet demo`: Mask R-CNN with GN and with FRN+TLU on real microscopy, and a report of both."""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from normdet.arguments import add_common
from normdet.config import load_config
from normdet.data import load_coco, quickstart
from normdet.engine.history import read_history
from normdet.errors import NormdetError
from normdet.files import page
from normdet.lab.beside import Job, run_all
from normdet.lab.compare.local import usable_cores
from normdet.lab.compare.provenance import versions
from normdet.lab.report import figures
from normdet.lab.report.runs import DRAWN_SCORE, predictions, scene

CONFIG = "quickstart/demo.yaml"
# The norms that are compared, each with its folder.
NORMS = {"GN": "gn", "FRN+TLU": "frn_tlu"}


@dataclass(frozen=True)
class Training:
    """One training run: its norm, which is its name in the report, its folder, and config keys."""

    norm: str
    folder: Path
    opts: Sequence[str] = ()

    @property
    def results_file(self) -> Path:
        """The file that `normdet train` writes last; if it exists, the run is finished."""
        return self.folder / "results.json"

    @property
    def command(self) -> str:
        """The command to type for it."""
        return shlex.join(["normdet", "train", *self.arguments()])

    def job(self, steps: int) -> Job:
        """The process that trains it."""
        command = (sys.executable, "-m", "normdet", "train", *self.arguments())
        return Job(self.norm, command, self.folder / "metrics.json", steps)

    def arguments(self) -> list[str]:
        """The words after `normdet train`."""
        where = ["OUTPUT_DIR", str(self.folder)]
        return ["--config-file", CONFIG, "--norm", self.norm, "--resume", *where, *self.opts]


def main(argv: Sequence[str] | None = None) -> int:
    """Train the runs that are not finished; write metrics.json, the pictures and report.html.

    Raises:
        NormdetError: there is no data, or the output folder cannot be used.
    """
    args = parse_arguments(argv)
    runs = [
        Training(norm, args.output / folder, tuple(args.opts)) for norm, folder in NORMS.items()
    ]
    if args.restart:
        for run in runs:
            shutil.rmtree(run.folder, ignore_errors=True)
    data = quickstart.prepare()
    unfinished = [run for run in runs if not run.results_file.is_file()]
    if not unfinished:
        print(f"{args.output} holds a finished demo: reporting on it again (--restart trains anew)")
    if unfinished:
        _train(unfinished, args.opts)
    results = {run.norm: json.loads(run.results_file.read_text()) for run in runs}
    metrics = _report(args.output, runs, results, data)
    for name, tasks in metrics.items():
        print(f"{name}: box AP {_ap(tasks['bbox']['AP'])}, mask AP {_ap(tasks['segm']['AP'])}")
    print(f"report: {args.output / 'report.html'}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command's words."""
    parser = argparse.ArgumentParser(
        prog="normdet demo",
        description="Train Mask R-CNN with GN and with FRN+TLU on real microscopy, and report.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/demo"), metavar="DIR",
        help="folder of the runs and the report (output/demo)",
    )  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="forget an earlier demo's runs")
    add_common(parser, "opts")
    return parser.parse_intermixed_args(argv)


def _train(runs: Sequence[Training], opts: Sequence[str]) -> None:
    """Run `normdet train` for every run, beside each other on a CPU; interrupted ones go on.

    The parts of a step that no second thread speeds up take a third of it on two cores. So two runs
    of one thread each end sooner than one after the other.
    """
    cfg = load_config(CONFIG, opts)
    cores = usable_cores()
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
    at_once = 1 if on_gpu else min(len(runs), cores)
    for run in runs:
        print(f"{run.norm}: {run.command}")
    jobs = [run.job(cfg.SOLVER.MAX_ITER) for run in runs]
    run_all(jobs, at_once, {"OMP_NUM_THREADS": str(max(1, cores // at_once))})
    for run in runs:
        if not run.results_file.is_file():
            raise NormdetError(f"{run.folder} holds no results: set DATASETS.TEST to evaluate")


def _report(
    output: Path, runs: Sequence[Training], results: Mapping[str, dict], data: Path
) -> dict[str, dict]:
    """Write every file of the demo from the runs' results; return the content of metrics.json."""
    metrics = {
        name: {task: {key: tasks[task][key] for key in ("AP", "AP50")} for task in ("bbox", "segm")}
        for name, tasks in results.items()
    }
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    histories = {run.norm: read_history(run.folder / "metrics.json") for run in runs}
    figures.draw_curves(histories, output / "curves.png")
    titles = {name: f"{name}: mask AP {_ap(m['segm']['AP'])}" for name, m in metrics.items()}
    figures.draw_scenes(_scenes(runs, data), titles, output / "predictions.png")
    report = _page(output, runs, metrics, histories)
    (output / "report.html").write_text(report, encoding="utf-8")
    return metrics


def _scenes(runs: Sequence[Training], data: Path) -> list[figures.Scene]:
    records = load_coco(data / "test.json", data / "images").records
    predicted = {run.norm: predictions(run.folder) for run in runs}
    return [scene(record, predicted) for record in records]


def _ap(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _page(output: Path, runs: Sequence[Training], metrics: Mapping, histories: Mapping) -> str:
    rows = []
    for run in runs:
        measured = metrics[run.norm]
        scores = [_ap(measured[t][k]) for t in ("bbox", "segm") for k in ("AP", "AP50")]
        times = [entry["time"] for entry in histories[run.norm] if "time" in entry]
        pace = f"{statistics.median(times):.2f}" if times else "-"
        rows.append([run.norm, *scores, str(histories[run.norm][-1]["iteration"] + 1), pace])
    head = ["norm", "box AP", "box AP50", "mask AP", "mask AP50", "iterations", "s / iteration"]
    return page.page(
        "Mask R-CNN on fluorescence microscopy: GN and FRN+TLU",
        [
            page.paragraph(
                "Two detectors that differ in their norm alone, trained from random weights with "
                "two images a batch on the left part of one image of the 2018 Data Science Bowl "
                "and measured with COCO AP on its right part."
            ),
            page.heading("Average precision on the held-out part"),
            page.table(head, rows),
            page.paragraph(
                "One run each on few nuclei: differences of a few points are within what another "
                "seed would give.",
                note=True,
            ),
            page.heading("Predictions beside the truth"),
            page.picture(output / "predictions.png", "held-out tiles with outlines of nuclei"),
            page.paragraph(f"Predictions with a score of {DRAWN_SCORE} or more.", note=True),
            page.heading("Training"),
            page.picture(output / "curves.png", "training loss and AP over iterations"),
            page.heading("How it was made"),
            page.commands(run.command for run in runs),
            page.heading("With"),
            page.table(["what", "version"], _versions()),
        ],
    )


def _versions() -> list[tuple[str, str]]:
    """The versions of the packages, and the machine."""
    device = f"CPU, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return [
        *versions(),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("device", device),
    ]
