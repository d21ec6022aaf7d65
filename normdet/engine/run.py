"""`normdet train` and `tools/train_net.py`: from the command line's arguments to the AP table."""

import argparse
import contextlib
import json
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from rich.console import Console

from normdet.config import load_config
from normdet.data import register_datasets
from normdet.data.input_record import write_record
from normdet.data.register import dataset_places
from normdet.engine.launch import elastic_job, launch, meeting_place, restarts
from normdet.engine.log import setup_logging
from normdet.engine.summary import (
    batch_of_one,
    config_diff,
    flat,
    jsonable,
    parts_table,
    parts_text,
    results_table,
)
from normdet.engine.trainer import Trainer
from normdet.engine.watch import Watch, connect
from normdet.errors import NormdetError
from normdet.export.fold import deployable
from normdet.files.anonymous import Numbers, hiding, key_beside
from normdet.files.atomic import atomic_file
from normdet.weights.checkpointer import last_checkpoint
from normdet.weights.model import load_model

logger = logging.getLogger(__name__)

# Files that only training writes; a refused start leaves none of them.
_MARKS = ("last_checkpoint", "metrics.json", "results.json")


def train(args: argparse.Namespace, trainer: type[Trainer] = Trainer) -> dict | None:
    """Train and evaluate what the arguments describe; with `args.eval_only` only evaluate.

    Args:
        args: as :func:`normdet.arguments.train_arguments` reads them.
        trainer: what trains and evaluates.

    Returns:
        The metrics of each task, by dataset if there are several; None where other
        processes computed them (they are in `OUTPUT_DIR/results.json`) and after a dry run.

    Raises:
        NormdetError: bad input, or a loss that is not finite.
        Interrupted: SIGINT or SIGTERM; a checkpoint is saved.
    """
    opts = [*args.opts, "SOLVER.EMA.ENABLED", True] if args.ema else args.opts
    cfg = load_config(args.config_file, opts, args.norm, args.norm_parts)
    use_device_at_hand(cfg)
    cfg.freeze()
    if args.dry_run:
        _dry_run(cfg, args.allow_unsafe_weights)
        return None
    return launch(
        _run,
        args.num_gpus,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
        (cfg, args, trainer),
        device=torch.device(cfg.MODEL.DEVICE).type,
    )


def use_device_at_hand(cfg: CfgNode) -> None:
    """Compute on the CPU, and say so, if the config names CUDA and there is none."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        if os.environ.get("RANK", "0") == "0":
            print("no CUDA here: MODEL.DEVICE cpu")


def _run(cfg: CfgNode, args: argparse.Namespace, kind: type[Trainer] = Trainer) -> dict:
    """The work of every process of a job."""
    numbers = None
    if args.anonymize:
        # Every worker makes the same key.
        out, root = Path(cfg.OUTPUT_DIR), cfg.DATASETS.ROOT
        alone = [Path(root)] if root else []
        numbers = Numbers(dataset_places(cfg), key_beside(out), own=[out], alone=alone)
    with hiding(numbers):
        return _run_openly(cfg, args, kind)


def _run_openly(cfg: CfgNode, args: argparse.Namespace, kind: type[Trainer]) -> dict:
    folder = Path(cfg.OUTPUT_DIR)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED, args.resume = _from_main(lambda: (_prepare(cfg, folder, args), args.resume))
    cfg.freeze()
    console = _setup_logging(folder, terminal=sys.stdout.isatty() and not args.eval_only)
    logger.debug("environment:\n%s", collect_env_info())
    logger.debug("arguments: %s", args)
    # Keep names unbroken and unescaped, so that they are recognized and hidden.
    logger.debug("config:\n%s", cfg.dump(width=sys.maxsize, allow_unicode=True))
    logger.debug("keys that differ from the defaults:\n%s", config_diff(cfg))
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    if args.eval_only:
        results = _evaluate(cfg, args.resume, args.allow_unsafe_weights)
    else:
        with _watching(cfg) as watch:
            trainer = kind(
                cfg, allow_unsafe=args.allow_unsafe_weights, console=console, watch=watch
            )
            if watch:
                watch.start()
            trainer.resume_or_load(resume=args.resume)
            _from_main(lambda: _show_start(cfg, trainer, folder))
            results = trainer.train()
    _from_main(lambda: _show_results(cfg, results, folder))
    return results


@contextlib.contextmanager
def _watching(cfg: CfgNode) -> Iterator[Watch | None]:
    """A watch over the job's workers that lasts until all have trained; None for one worker."""
    place, world = meeting_place(), comm.get_world_size()
    if world == 1 or place is None:
        yield None
        return
    watch = Watch(connect(*place), comm.get_rank(), world, cfg.SOLVER.HANG_SECONDS)
    yield watch
    watch.close()


def _go_on_if_restarted(args: argparse.Namespace, folder: Path) -> None:
    """Resume if an elastic launcher starts this job again after one of its workers failed.

    Only a job that took the folder resumes in it; a refused one does not.
    """
    job, note = elastic_job(), folder / "elastic_job.txt"
    if not job or args.eval_only:
        return
    if restarts() and note.is_file() and note.read_text() == job:
        args.resume = True


def _note_job(folder: Path) -> None:
    if job := elastic_job():
        (folder / "elastic_job.txt").write_text(job)


def _from_main(fn: Callable[[], Any]) -> Any:
    """In every process, the result of `fn` on rank 0; an error there stops all of them."""
    value, error = None, None
    if comm.is_main_process():
        try:
            value = fn()
        except NormdetError as refused:
            error = refused
    value, error = comm.all_gather((value, error))[0]
    if error is not None:
        raise error
    return value


def _prepare(cfg: CfgNode, folder: Path, args: argparse.Namespace) -> int:
    """Take the output folder for this run and return its seed.

    Raises:
        NormdetError: the folder holds another run, or the run to resume has another model.
    """
    _go_on_if_restarted(args, folder)
    record = folder / "config.yaml"
    # A start that the weights' check refused leaves an empty file.
    marks = [mark for mark in _MARKS if (folder / mark).exists() and (folder / mark).stat().st_size]
    if marks and not (args.resume or args.eval_only):
        raise NormdetError(
            f"OUTPUT_DIR {folder} already holds a run ({', '.join(marks)}): "
            "give another OUTPUT_DIR, or --resume to go on with it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NormdetError(f"OUTPUT_DIR {folder} cannot be made: {error.strerror}") from error
    seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(2**31)
    if args.eval_only:
        return seed
    if args.resume and record.exists():
        before = load_config(record)
        _refuse_other_model(before, cfg, record)
        if cfg.SEED < 0:
            seed = before.SEED
    recorded = cfg.clone()
    recorded.SEED = seed
    with atomic_file(record) as file:
        file.write(recorded.dump().encode())
    (folder / "config_diff.txt").write_text(config_diff(recorded) + "\n")
    _note_job(folder)
    return seed


def _refuse_other_model(before: CfgNode, now: CfgNode, record: Path) -> None:
    old = dict(flat(before.MODEL))
    changed = [
        f"MODEL.{key} was {old.get(key)!r} and is {value!r}"
        for key, value in flat(now.MODEL)
        if key not in ("WEIGHTS", "DEVICE") and old.get(key) != value
    ]
    if changed:
        raise NormdetError(f"--resume: {record} is of another model: {'; '.join(changed)}")


def _setup_logging(folder: Path, terminal: bool) -> Console | None:
    """Set up this process's logging; return the console for a bar if rank 0 has a terminal."""
    rank = comm.get_rank()
    console = Console(file=sys.stdout) if terminal and rank == 0 else None
    setup_logging(str(folder), rank, console)
    return console


def _evaluate(cfg: CfgNode, resume: bool, allow_unsafe: bool) -> dict:
    register_datasets(cfg)
    path = last_checkpoint(cfg.OUTPUT_DIR) if resume else ""
    if resume and not path and cfg.MODEL.WEIGHTS:
        logger.warning(
            "--resume: OUTPUT_DIR %s has no checkpoint; MODEL.WEIGHTS %r is evaluated",
            cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS,
        )  # fmt: skip
    path = path or cfg.MODEL.WEIGHTS
    if not path:
        raise NormdetError(
            "--eval-only: MODEL.WEIGHTS names no weights to evaluate; "
            "--resume takes the last checkpoint in OUTPUT_DIR"
        )
    model, _ = load_model(cfg, path, allow_unsafe=allow_unsafe)
    return Trainer.test(cfg, deployable(model))


def _show_start(cfg: CfgNode, trainer: Trainer, folder: Path) -> None:
    """Print the table of parts; save it, and the sources of the weights, beside the checkpoint."""
    model, report = trainer.model, trainer.checkpointer.report
    rows = parts_table(model, report, trainer.started, cfg.MODEL.NORMDET.START.IMAGES)
    text = parts_text(rows)
    logger.info("parts of the model:\n%s", text)
    if warning := batch_of_one(cfg, model, comm.get_world_size()):
        logger.warning("%s", warning)
    if cfg.DATASETS.TRAIN:
        write_record(cfg, folder)
    (folder / "norms.txt").write_text(text + "\n")
    (folder / "norms.json").write_text(json.dumps(rows, indent=1) + "\n")
    if report.source:
        (folder / "weights.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")


def _show_results(cfg: CfgNode, results: dict, folder: Path) -> None:
    """Print the AP table, and keep the numbers in `results.json`."""
    if not results:
        return
    names = cfg.DATASETS.TEST or ("held out",)
    logger.info("results:\n%s", results_table(results, names))
    file = folder / "results.json"
    file.write_text(json.dumps(jsonable(results), indent=1) + "\n")
    logger.info("log, checkpoints and %s are in %s", file.name, folder)


def _dry_run(cfg: CfgNode, allow_unsafe: bool) -> None:
    """Print what a run would do. Nothing is trained or written."""
    register_datasets(cfg)
    model, report = load_model(cfg, allow_unsafe=allow_unsafe)
    print(config_diff(cfg), parts_text(parts_table(model, report)), sep="\n\n")
    for warning in report.warnings:
        print(f"warning: {warning}")
