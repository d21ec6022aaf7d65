"""Train by a LazyConfig, with the loop of detectron2's `lazyconfig_train_net.py` and our norms."""

import argparse
import logging
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from normdet.errors import NormdetError
from normdet.layers import after_step
from normdet.weights.checkpointer import Checkpointer

logger = logging.getLogger(__name__)


def evaluate(cfg: Any, model: nn.Module) -> dict | None:
    """The results of the config's evaluator; None if the config has none."""
    if "evaluator" not in cfg.dataloader:
        return None
    loader, judge = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, judge)
    print_csv_format(results)
    return results


def build(cfg: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model on its device and its optimizer, which calls `after_step` after each step."""
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    optimizer.register_step_post_hook(lambda *_: after_step(model))
    return model, optimizer


def train(cfg: Any, *, resume: bool = False) -> None:
    """Train what a lazy config describes and evaluate it on the way.

    Args:
        cfg: with detectron2's `train`, `model`, `optimizer`, `dataloader` and `lr_multiplier`.
        resume: go on from the last checkpoint in `train.output_dir`.
    """
    model, optimizer = build(cfg)
    report = getattr(model, "norm_report", None)
    if report is not None:
        logger.info("norms:\n%s", report)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, **cfg.train.ddp)
    kind = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = kind(model, loader, optimizer)
    checkpointer = Checkpointer(model, cfg.train.output_dir, trainer=trainer)
    main = comm.is_main_process()
    trainer.register_hooks([
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
        hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)),
        hooks.PeriodicWriter(
            default_writers(cfg.train.output_dir, cfg.train.max_iter), period=cfg.train.log_period
        ) if main else None,
    ])  # fmt: skip
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    first = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(first, cfg.train.max_iter)


def run(args: argparse.Namespace) -> None:
    """The function that each process of a job runs, with detectron2's usual arguments."""
    try:
        cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    except FileNotFoundError as error:
        raise NormdetError(f"--config-file {args.config_file}: {error}") from None
    if str(cfg.train.device).startswith("cuda") and not torch.cuda.is_available():
        cfg.train.device = "cpu"
    default_setup(cfg, args)
    if not args.eval_only:
        train(cfg, resume=args.resume)
        return
    model = instantiate(cfg.model).to(cfg.train.device)
    Checkpointer(model).load(cfg.train.init_checkpoint)
    print(evaluate(cfg, create_ddp_model(model)))


def main(argv: list[str] | None = None) -> None:
    """The command line of `tools/lazyconfig_train_net.py`."""
    args = default_argument_parser().parse_args(argv)
    machines = {"num_machines": args.num_machines, "machine_rank": args.machine_rank}
    launch(run, args.num_gpus, dist_url=args.dist_url, args=(args,), **machines)
