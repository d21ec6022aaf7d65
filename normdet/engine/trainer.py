"""detectron2's DefaultTrainer with our optimizer groups, loader, step and way of stopping."""

import contextlib
import logging
import re
import signal
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from normdet.data import build_mapper, register_datasets
from normdet.engine.ema import ModelAverage
from normdet.engine.launch import Interrupted, LostWorker, end_now, is_of_another_worker
from normdet.engine.leave_stored import LeaveStored
from normdet.engine.loader import build_train_loader, derived_seed, same_batches
from normdet.engine.log import LoggedOutput
from normdet.engine.norm_hooks import NormPage, NormScalars
from normdet.engine.one_value import refuse_one_value
from normdet.engine.precise import PreciseStatistics
from normdet.engine.progress import ProgressBar
from normdet.engine.signals import StopRequest
from normdet.engine.start import start_norms
from normdet.engine.step import AMP_DTYPES, NonFiniteLoss, TrainStep
from normdet.engine.summary import flat
from normdet.engine.watch import BETWEEN, EVALUATION, Watch
from normdet.errors import NormdetError
from normdet.evaluation import build_evaluator
from normdet.evaluation.tiled_model import TiledModel
from normdet.solver import build_optimizer
from normdet.weights.checkpointer import Checkpointer

logger = logging.getLogger(__name__)

# torch's message where a process of a loader was killed.
_LOADER_GONE = re.compile(r"DataLoader worker .*(exited unexpectedly|killed by signal)")


class Trainer(DefaultTrainer):
    """Trains and evaluates what a config describes, in one process or one of many, on CPU or GPU.

    Start values, batches, augmentations and the draws of every step follow from `cfg.SEED` and the
    iteration, so a run that was stopped and resumed repeats the one that was not (bit for bit on a
    CPU). A negative seed is drawn anew each time.

    Args:
        cfg: with normdet's keys.
        allow_unsafe: whether weight files may run code on loading.
        console: a terminal for the progress bar; None for no bar.
        watch: of the job's workers; None for a single worker, or if nobody watches.

    Attributes:
        started: names of the norms that :meth:`resume_or_load` started from data.
        average: of the model over its steps, or None (`SOLVER.EMA`).
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        allow_unsafe: bool = False,
        console: Console | None = None,
        watch: Watch | None = None,
    ):
        TrainerBase.__init__(self)  # DefaultTrainer's would build its own parts
        cfg = scale_to_workers(cfg, comm.get_world_size())
        _check_batch(cfg)
        register_datasets(cfg)
        self.cfg = cfg
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._console = console
        self._results: dict = {}
        self._stop = StopRequest(self._note_stop)
        self._evaluation_cut = False
        self._done = -1  # the last iteration whose step is complete
        self._watch = watch
        if watch:
            watch.on_lost, watch.on_stop = self._end_without, self._end_together
            watch.on_orphaned = self._note_stop
        self.started: Sequence[str] = ()

        torch.manual_seed(derived_seed("start", self.seed))
        model = self.build_model(cfg)
        if cfg.MODEL.NORMDET.CHANNELS_LAST:
            model.to(memory_format=torch.channels_last)  # maps follow the weights
        loader = self.build_train_loader(cfg)
        refuse_one_value(cfg, model, loader.image_sizes, comm.get_world_size())
        optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        devices = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        self._trainer = TrainStep(
            model,
            loader,
            optimizer,
            micro_batches=cfg.SOLVER.ACCUMULATE_STEPS,
            amp_dtype=AMP_DTYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None,
            max_broken=cfg.DATALOADER.MAX_BROKEN_IMAGES,
            tell=self._tell_phase,
        )
        ema = cfg.SOLVER.EMA
        self.average = ModelAverage(model, ema.DECAY) if ema.ENABLED else None
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, allow_unsafe=allow_unsafe, cfg=cfg,
            kept=self.average and self.average.module, trainer=weakref.proxy(self),
        )  # fmt: skip
        self.register_hooks(self.build_hooks())

    @property
    def kept(self) -> nn.Module:
        """The model that is evaluated and saved: its average, if one is kept."""
        return self.average.module if self.average else self.model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of :func:`normdet.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    def build_train_loader(self, cfg: CfgNode) -> DataLoader:
        """The loader of :func:`normdet.engine.loader.build_train_loader`."""
        return build_train_loader(cfg, self.seed)

    def build_hooks(self) -> list[HookBase]:
        """detectron2's hooks in detectron2's order, with a progress bar on a terminal."""
        cfg = self.cfg
        built: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        averages = [self.average] if self.average else []
        models = (self.model, *(average.module for average in averages))
        built.append(LeaveStored(*models, until=cfg.MODEL.NORMDET.ANNEAL_UNTIL))
        built += averages
        if cfg.TEST.PRECISE_BN.ENABLED:
            built.append(
                PreciseStatistics(
                    cfg.TEST.EVAL_PERIOD, self.kept, same_batches(self.data_loader),
                    cfg.TEST.PRECISE_BN.NUM_ITER, self.seed,
                )
            )  # fmt: skip
        if comm.is_main_process():
            period = cfg.SOLVER.CHECKPOINT_PERIOD
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, period))
            if self._console:
                built.append(ProgressBar(self._console))
        built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            looks = cfg.MODEL.NORMDET.STATISTICS_PERIOD
            built.append(NormScalars(self.model, looks))
            built.append(hooks.PeriodicWriter(self.build_writers(), period=20))
            built += [NormPage(Path(cfg.OUTPUT_DIR))] if looks else []
        return built

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint of the output folder, or load `MODEL.WEIGHTS`."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self.checkpointer.resumed:
            self.start_iter = self.iter + 1
        if self.start_iter >= self.max_iter:
            logger.warning(
                "%s is at iteration %d, SOLVER.MAX_ITER is %d: nothing is left to train",
                self.checkpointer.resumed, self.start_iter, self.max_iter,
            )  # fmt: skip
        self.data_loader.batch_sampler.start = self.start_iter
        if not self.checkpointer.resumed:
            self.started = start_norms(
                self.cfg, self.model, self.data_loader.dataset, self.seed
            )

    def train(self) -> dict:
        """Train to `SOLVER.MAX_ITER` and evaluate.

        Returns:
            The last evaluation's results, as :meth:`test` gives them.

        Raises:
            NonFiniteLoss: the loss is infinite or not a number; the last checkpoint stays.
            Interrupted: SIGINT, SIGTERM or SIGHUP came; a checkpoint that resumes exactly is saved.
                A second one does not wait for it.
            LostWorker: another worker is gone; the others have saved their state.
        """
        logger.info("training from iteration %d to %d", self.start_iter, self.max_iter)
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage, self._stop:
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self._done = self.iter
                    self._tell_phase(BETWEEN)
                    self.after_step()
                    if self._stopping():
                        self._save_and_stop()
                    self.iter += 1
            except BaseException as error:
                self._close()
                if isinstance(error, NonFiniteLoss) and self.checkpointer.has_checkpoint():
                    kept = self.checkpointer.get_checkpoint_file()
                    raise NonFiniteLoss(f"{error}; the last checkpoint is {kept}") from None
                if isinstance(error, Exception) and (lost := self._lost(error)):
                    self._watch.claim()
                    raise LostWorker(lost, self._rescue()) from error
                if _LOADER_GONE.search(str(error)):
                    # The other workers of a job save when they find this one gone.
                    kept = f"; {self._rescue()}" if comm.get_world_size() == 1 else ""
                    if self._stop.number:  # a lost terminal ends loaders too
                        raise self._interrupted() from error
                    raise NormdetError(
                        "a process that loads images was ended (by hand, or for want of memory: "
                        f"fewer DATALOADER.NUM_WORKERS need less){kept}"
                    ) from error
                raise
            self.after_train()
            if self._evaluation_cut:
                raise self._interrupted()
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._results)
        return self._results

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of a checkpoint.

        Raises:
            NormdetError: its model is an average, and this run keeps none.
        """
        if self.average is None and ModelAverage.__qualname__ in state_dict.get("hooks", {}):
            raise NormdetError(
                "the checkpoint's model is an average of the one that trains: resume it with "
                "SOLVER.EMA.ENABLED True"
            )
        super().load_state_dict(state_dict)

    def run_step(self) -> None:
        """One step, whose draws follow from the seed and the iteration."""
        torch.manual_seed(derived_seed("step", self.seed, self.iter, comm.get_rank()))
        super().run_step()

    def _note_stop(self) -> None:
        self._trainer.stop = True
        if self._watch:
            self._watch.ask_to_stop(self._stop.number or signal.SIGTERM)

    def _tell_phase(self, phase: str) -> None:
        if self._watch:
            self._watch.at(phase, self.iter)

    def _lost(self, error: Exception) -> str:
        """Which workers are gone, if a collective operation failed for that reason; else `""`."""
        if not self._watch or not is_of_another_worker(error):
            return ""
        return self._watch.gone() or f"a worker no longer answers ({str(error).splitlines()[0]})"

    def _rescue(self) -> str:
        """Save this worker's state after the last complete step; return a sentence on what is kept.

        Parameters and the optimizer's state are those of the step. Running averages of batch
        statistics may have learned the images of the step that broke off.
        """
        if self._done >= self.start_iter:
            self.iter = self._done
            self.checkpointer.save_to_disk = True
            try:
                self.checkpointer.save(f"model_{self._done:07d}", iteration=self._done)
            except NormdetError as error:
                logger.error("%s", error)
        kept = self.checkpointer.get_checkpoint_file()
        if not kept:
            return "no step was finished, nothing is lost"
        return f"{kept} is saved, and --resume goes on from it"

    def _end_without(self, lost: str, answering: list[int]) -> None:
        """End a job in which some workers do not answer; the first that answers saves."""
        kept = self._rescue() if comm.get_rank() == answering[0] else ""
        end_now(LostWorker(lost, kept))

    def _end_together(self, number: int, answering: list[int]) -> None:
        """End a job between its steps: in an evaluation, or before the first."""
        if comm.get_rank() == answering[0]:
            self._rescue()
        if self._done < 0:
            name = signal.Signals(number).name
            end_now(Interrupted(f"stopped by {name} before training began", number))
        end_now(self._interrupted(number))

    def _stopping(self) -> bool:
        """Whether to stop after this step; the same answer in every process."""
        alone = comm.get_world_size() == 1 and self._trainer.stop
        return alone or self._trainer.stopped or self._evaluation_cut

    def _save_and_stop(self) -> None:
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        # No process ends while the checkpoint is being written.
        reasons = [reason for reason in comm.all_gather(self._trainer.stop_reason) if reason]
        if reasons:
            kept = self.checkpointer.get_checkpoint_file()
            raise NormdetError(
                f"stopped after {self.iter + 1} of {self.max_iter} iterations: {reasons[0]}. "
                f"{kept} is saved, and --resume goes on from it"
            )
        raise self._interrupted()

    def _interrupted(self, number: int = 0) -> Interrupted:
        number = number or self._stop.number or signal.SIGTERM
        kept = self.checkpointer.get_checkpoint_file()
        done = min(self.iter + 1, self.max_iter)
        return Interrupted(
            f"stopped by {signal.Signals(number).name} after {done} of {self.max_iter} iterations; "
            f"{kept} is saved, and --resume goes on from it",
            number,
        )

    def _close(self) -> None:
        """Run the hooks' `after_train` without the evaluation, which the run did not reach."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            if not isinstance(hook, hooks.EvalHook):
                hook.after_train()

    @property
    def evaluates(self) -> bool:
        """Whether there is something to evaluate on."""
        return bool(self.cfg.DATASETS.TEST)

    def _evaluate(self) -> dict:
        if not self.evaluates or self._stopping():
            return {}
        self._tell_phase(EVALUATION)
        # Several workers must end together; the watch sees to that.
        cut = self._stop.at_once if comm.get_world_size() == 1 else contextlib.nullcontext
        try:
            with cut():
                self._results = self.test(self.cfg, self.kept)
        except KeyboardInterrupt:
            if not self._stop.number:
                raise
            self._evaluation_cut = True
            return {}
        return self._results

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict:
        """Evaluate `model` on `DATASETS.TEST`, in tiles or with augmentation if `cfg` asks.

        Returns:
            On rank 0 the metrics of each task, by dataset if there are several; {} elsewhere.
        """
        if cfg.INPUT.TILE:
            if cfg.TEST.AUG.ENABLED:
                raise NormdetError("TEST.AUG.ENABLED takes whole images: set INPUT.TILE 0")
            model = TiledModel(model, cfg)
        elif cfg.TEST.AUG.ENABLED:
            model = GeneralizedRCNNWithTTA(cfg, model)
        # pycocotools prints; redirect its lines to the log.
        with contextlib.redirect_stdout(LoggedOutput(logging.getLogger("detectron2.pycocotools"))):
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """detectron2's, through our mapper."""
        return build_detection_test_loader(cfg, dataset_name, mapper=build_mapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of :func:`normdet.evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name, Path(cfg.OUTPUT_DIR, "inference"))


def scale_to_workers(cfg: CfgNode, workers: int) -> CfgNode:
    """Scale the config to the number of workers, if it was written for another number.

    Batch, rate and schedule follow `SOLVER.REFERENCE_WORLD_SIZE` as in detectron2's
    `auto_scale_workers`. A worker has as many images as before; the rate is scaled with the batch,
    and iterations, steps and periods inversely. Changes are logged. 0 scales nothing.

    Raises:
        NormdetError: the batch is no multiple of the reference.
    """
    reference, images = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if reference and images % reference:
        raise NormdetError(
            f"SOLVER.REFERENCE_WORLD_SIZE {reference} does not divide SOLVER.IMS_PER_BATCH "
            f"{images}: set it to 0 to train the config as it is written"
        )
    scaled = DefaultTrainer.auto_scale_workers(cfg, workers)
    before, after = dict(flat(cfg)), dict(flat(scaled))
    changes = [
        f"{key} {before[key]} -> {after[key]}"
        for key in after
        if after[key] != before[key] and key != "SOLVER.REFERENCE_WORLD_SIZE"
    ]
    if changes:
        logger.info(
            "the config is for %d workers, here %s: %s; SOLVER.REFERENCE_WORLD_SIZE 0 trains it "
            "as it is written",
            reference, "is 1" if workers == 1 else f"are {workers}", ", ".join(changes),
        )  # fmt: skip
    return scaled


def _check_batch(cfg: CfgNode) -> None:
    images, parts, world = (
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE_STEPS, comm.get_world_size(),
    )  # fmt: skip
    if images < 1 or images % (parts * world):
        raise NormdetError(
            f"SOLVER.IMS_PER_BATCH {images} is not a multiple of {parts * world}, as {world} "
            f"process(es) with SOLVER.ACCUMULATE_STEPS {parts} need it"
        )
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise NormdetError(
            "SOLVER.AMP.DTYPE float16 needs a GPU: on a CPU take SOLVER.AMP.DTYPE bfloat16"
        )
