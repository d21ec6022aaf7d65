"""`normdet bench --data`: many images on each route, beside detectron2's if it has that route.

Every row is measured in its own process at two sizes, a quarter and the whole. It gives the time
by the clock and of the processor, the memory beyond the process's start, and the growth of the
processor's time per item (1 is linear).
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from normdet.errors import NormdetError

COLUMNS = (
    "date versions machine command task provider size unit seconds cpu_seconds items_per_second "
    "peak_mb growth"
).split()
# The number of images, with ten objects each; fewer if their pixels are written.
FULL = {"prepare": 5_000, "predict": 1_000, "annotations": 100_000, "compare": 200}
QUICK = {"prepare": 24, "predict": 8, "annotations": 400, "compare": 40}
OBJECTS, SIDE = 10, 64
_PARTS = 4
# How many names a file has at most on common file systems.
_NAMES = 50_000

# A task takes a folder and a number. It prepares, and returns the function to measure.
Task = Callable[[Path, int], Callable[[], Any]]


def rows(sizes: dict[str, int], scale: float = 1.0) -> Iterator[dict]:
    """One row for each task and provider.

    Args:
        sizes: items by kind of task.
        scale: of the sizes.

    Raises:
        NormdetError: a task failed.
    """
    for task, kind, unit, providers in TASKS:
        size = max(_PARTS, int(sizes[kind] * scale))
        for provider, prepare in providers.items():
            _, part, _ = _apart(prepare, size // _PARTS, f"{task} by {provider}")
            seconds, cpu, peak = _apart(prepare, size, f"{task} by {provider}")
            growth = (cpu / size) / (part / (size // _PARTS))
            yield {
                "task": task, "provider": provider, "size": size, "unit": unit,
                "seconds": f"{seconds:.3g}", "cpu_seconds": f"{cpu:.3g}",
                "items_per_second": f"{size / seconds:.4g}",
                "peak_mb": f"{peak:.0f}", "growth": f"{growth:.2f}",
            }  # fmt: skip


def _apart(prepare: Task, size: int, name: str) -> tuple[float, float, float]:
    """Seconds, seconds of the processor and MB of a task in its own process."""
    context = multiprocessing.get_context("fork")  # imports are not measured
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_measure, args=(prepare, Path(folder), size, sender))
        process.start()
        sender.close()
        try:
            return receiver.recv()
        except EOFError:
            raise NormdetError(f"{name} of {size} failed, see above") from None
        finally:
            process.join()


def _measure(prepare: Task, folder: Path, size: int, sender: Any) -> None:
    import resource  # on Unix alone, like fork

    with contextlib.redirect_stdout(io.StringIO()):
        run = prepare(folder, size)
        held = psutil.Process().memory_info().rss
        begun, worked = time.perf_counter(), time.process_time()
        run()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - worked
    peak = max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held) / 2**20
    sender.send((seconds, cpu, peak))


# Tasks --------------------------------------------------------------------------------------------


def _prepare(folder: Path, size: int) -> Callable[[], Any]:
    # Commands are found by name, as on the command line.
    main = importlib.import_module("normdet.medical.prepare").main
    _pictures(folder / "in", size, labels=True)
    return lambda: main([str(folder / "in"), "--out", str(folder / "out")])


def _predict(folder: Path, size: int) -> Callable[[], Any]:
    import torch
    from detectron2.structures import Boxes, Instances

    from normdet.config import load_config
    from normdet.data.input_record import InputRecord

    command = importlib.import_module("normdet.medical.predict.command")
    _pictures(folder / "in", size, labels=False)

    def model(inputs: list[dict]) -> list[dict]:
        """A model that finds ten boxes at once, to measure everything around a network."""
        found = Instances((SIDE, SIDE))
        corners = torch.arange(OBJECTS)[:, None] * 5.0 + torch.tensor([0.0, 0, 8, 8])
        found.pred_boxes, found.scores = Boxes(corners), torch.full((OBJECTS,), 0.9)
        found.pred_classes = torch.zeros(OBJECTS, dtype=torch.long)
        return [{"instances": found} for _ in inputs]

    words = [str(folder / "in"), "--weights", "none", "--out", str(folder / "out")]
    args = command.parse_arguments(words)
    cfg = load_config("quickstart/gn.yaml", ["MODEL.MASK_ON", False, "INPUT.MIN_SIZE_TEST", 0])
    cfg.INPUT.TILE = 0
    return lambda: command.predict(args, cfg, InputRecord(["cell"], [1], window="none"), model)


def _headers(folder: Path, size: int) -> Callable[[], Any]:
    from normdet.data.check import check_images

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    names = _links(folder, size)
    records = [{"file_name": str(path), "height": SIDE, "width": SIDE} for path in names]
    return lambda: check_images(records)


def _register(folder: Path, size: int) -> Callable[[], Any]:
    from normdet.data.coco import load_coco

    file = _annotations(folder, size)
    return lambda: load_coco(file, folder / "images")


def _register_stock(folder: Path, size: int) -> Callable[[], Any]:
    from detectron2.data.datasets import load_coco_json

    file = _annotations(folder, size)
    return lambda: load_coco_json(str(file), str(folder / "images"), "bench")


def _evaluate(fast: bool) -> Task:
    def prepare(folder: Path, size: int) -> Callable[[], Any]:
        from normdet.evaluation.measure import measured
        from normdet.evaluation.truth import truth_of

        truth, results = truth_of(_records(size), ["cell"]), _detections(size)
        return lambda: measured(truth, results, "bbox", fast=fast)

    return prepare


def _evaluate_stock(folder: Path, size: int) -> Callable[[], Any]:
    from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = COCO(str(_annotations(folder, size))), _detections(size)
    for one in results:
        one["category_id"] = 1
    return lambda: _evaluate_predictions_on_coco(truth, results, "bbox", cocoeval_fn=COCOeval)


def _compare(folder: Path, size: int) -> Callable[[], Any]:
    from normdet.lab.compare import command

    seeds = f"1-{max(1, size // 4)}"  # two norms at two batch sizes
    argv = ["--config-file", "quickstart/gn.yaml", "--norms", "GN,FRN+TLU", "--batch-sizes", "1,2",
            "--seeds", seeds, "--dry-run", "--out", str(folder / "out")]  # fmt: skip
    return lambda: command.main(argv)


TASKS = (
    ("prepare", "prepare", "images with labels", {"normdet": _prepare}),
    ("predict", "predict", "images, without a network", {"normdet": _predict}),
    ("headers", "annotations", "images, never seen", {"normdet": _headers}),
    (
        "register", "annotations", "images of 10 objects, COCO",
        {"normdet": _register, "detectron2": _register_stock},
    ),
    (
        "evaluate", "annotations", "images of 10 objects, box AP",
        {
            "normdet": _evaluate(True),
            "normdet, pycocotools": _evaluate(False),
            "detectron2, pycocotools": _evaluate_stock,
        },
    ),
    ("compare", "compare", "cells, planned", {"normdet": _compare}),
)  # fmt: skip


# Data ---------------------------------------------------------------------------------------------


def _boxes(size: int, seed: int) -> np.ndarray:
    """Boxes inside an image, x, y, width and height: `(size, OBJECTS, 4)`."""
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, SIDE / 2, (size, OBJECTS, 2))
    return np.concatenate([low, draw.uniform(4, SIDE / 2, (size, OBJECTS, 2))], axis=2).round(2)


def _pictures(folder: Path, size: int, labels: bool) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 60, (SIDE, SIDE), dtype=np.uint8)
    label = np.zeros((SIDE, SIDE), np.uint8)
    for number in range(OBJECTS):
        y, x = divmod(number * 12, SIDE - 12)
        label[y * 12 : y * 12 + 9, x : x + 9] = number + 1
    for name, image in (("images", pixels + 2 * label), ("labels", label))[: 1 + labels]:
        (folder / name).mkdir(parents=True)
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG")
        for number in range(size):
            (folder / name / f"{number:06d}.png").write_bytes(content.getvalue())


def _links(folder: Path, size: int) -> list[Path]:
    """Make many names of one picture, whose pixels nobody reads."""
    (folder / "images").mkdir()
    paths = [folder / "images" / f"{number:06d}.png" for number in range(size)]
    first = paths[0]
    for number, path in enumerate(paths):
        if number % _NAMES:
            os.link(first, path)
        else:
            first = path
            Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(path)
    return paths


def _annotations(folder: Path, size: int) -> Path:
    paths = _links(folder, size)
    images = [
        {"id": n, "file_name": path.name, "height": SIDE, "width": SIDE}
        for n, path in enumerate(paths, start=1)
    ]
    annotations = []
    for number, boxes in enumerate(_boxes(size, 0).tolist(), start=1):
        for x, y, w, h in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    content = {
        "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}],
    }  # fmt: skip
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def _records(size: int) -> list[dict]:
    from detectron2.structures import BoxMode

    return [
        {
            "image_id": number, "file_name": "", "height": SIDE, "width": SIDE,
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} for box in boxes
            ],
        }
        for number, boxes in enumerate(_boxes(size, 0).tolist(), start=1)
    ]  # fmt: skip


def _detections(size: int) -> list[dict]:
    draw = np.random.default_rng(1)
    boxes = _boxes(size, 0) + draw.normal(0, 1, (size, OBJECTS, 4)).round(2)
    boxes[..., 2:] = boxes[..., 2:].clip(1)
    scores = draw.random((size, OBJECTS)).round(3).tolist()
    return [
        {"image_id": number, "category_id": 0, "bbox": box, "score": score}
        for number, (of_image, their) in enumerate(zip(boxes.tolist(), scores, strict=True), 1)
        for box, score in zip(of_image, their, strict=True)
    ]
