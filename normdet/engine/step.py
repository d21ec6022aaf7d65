"""One optimizer step: mixed precision, gradient accumulation, and a stop if losses blow up."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from normdet.engine.watch import IMAGES, STEP
from normdet.errors import NormdetError
from normdet.files.words import first_of
from normdet.layers import after_step

logger = logging.getLogger(__name__)

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_WAY_OUT = "Try a lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or SOLVER.CLIP_GRADIENTS"


class NonFiniteLoss(NormdetError, FloatingPointError):
    """Training ran into a loss that is infinite or not a number."""

    exit_code = 3


def backward(
    model: nn.Module,
    batch: list,
    micro_batches: int = 1,
    amp_dtype: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, torch.Tensor]:
    """Add the gradients of the mean loss over equal consecutive parts of `batch`.

    If every loss term is a mean over images, this is the loss of the whole batch. That holds for
    the RPN, and for the box head if all images contribute as many sampled proposals
    (`ROI_HEADS.BATCH_SIZE_PER_IMAGE`, the usual case). detectron2 divides some terms by a count
    over the batch (mask and keypoint losses: positives; RetinaNet: a running mean of positives).
    These weigh parts instead of instances, as detectron2 does over as many GPUs. Images are
    padded to the largest of their part, and batch statistics are those of the part.

    Args:
        model: maps a list of inputs to a dict of scalar losses.
        batch: as many inputs as `micro_batches` divides.
        micro_batches: parts; gradients are exchanged between processes once, with the last.
        amp_dtype: precision of autocast; None for none.
        scaler: multiplies the loss before the backward pass.

    Returns:
        The loss terms, averaged over the parts, detached.
    """
    size = len(batch) // micro_batches
    means: dict[str, torch.Tensor] = {}
    device = next(model.parameters()).device.type
    for part in range(micro_batches):
        last = part == micro_batches - 1
        with contextlib.ExitStack() as stack:
            if not last and hasattr(model, "no_sync"):
                stack.enter_context(model.no_sync())
            with torch.autocast(device, dtype=amp_dtype, enabled=amp_dtype is not None):
                losses = model(batch[part * size : (part + 1) * size])
                total = sum(losses.values()) / micro_batches
            (scaler.scale(total) if scaler else total).backward()
        for name, value in losses.items():
            means[name] = means.get(name, 0) + value.detach() / micro_batches
    return means


class TrainStep(SimpleTrainer):
    """The step that detectron2's trainers call once per iteration; has optimizer and scaler state.

    Args:
        model: as for `backward`.
        data_loader: yields batches of as many images as one optimizer step takes.
        optimizer: stepped once per batch.
        micro_batches: parts in which a batch goes through the model, one after another.
        amp_dtype: None, `torch.bfloat16`, or `torch.float16`, whose gradients are scaled.
        max_broken: images that may turn out unreadable in this process before it asks to stop.
        tell: called with the next phase of the step, one of :mod:`.watch`.

    Attributes:
        stop: set to ask every process to stop; `stopped` says that one of them asked.
        stop_reason: a sentence, if this step itself asked.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list],
        optimizer: torch.optim.Optimizer,
        *,
        micro_batches: int = 1,
        amp_dtype: torch.dtype | None = None,
        max_broken: int = 0,
        tell: Callable[[str], None] = lambda phase: None,
    ):
        super().__init__(model, data_loader, optimizer)
        self._max_broken = max_broken
        self._broken: set[str] = set()
        self.stop_reason = ""
        self._tell = tell
        self.micro_batches = micro_batches
        self.amp_dtype = amp_dtype
        device = next(model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device) if amp_dtype is torch.float16 else None
        self.stop = False
        self.stopped = False

    def run_step(self) -> None:
        """Take a batch, add up its gradients, and step the optimizer.

        Raises:
            NonFiniteLoss: in every process, before any weight is changed.
        """
        self._tell(IMAGES)
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        self._tell(STEP)
        data_time = time.perf_counter() - start
        self._note_broken(batch)
        self.optimizer.zero_grad()
        try:
            losses = backward(self.model, batch, self.micro_batches, self.amp_dtype, self.scaler)
        except FloatingPointError as error:  # detectron2 found proposals that are not finite
            raise NonFiniteLoss(f"iteration {self.iter}: {error} {_WAY_OUT}") from error
        self._share({name: value.item() for name, value in losses.items()}, data_time)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        after_step(self.model)

    def _note_broken(self, batch: list[dict]) -> None:
        """Name each image that could not be read once; ask to stop if they are too many."""
        examples = [example for example in batch if isinstance(example, dict)]
        for sentence in [one for example in examples for one in example.pop("broken", ())]:
            if sentence not in self._broken:
                self._broken.add(sentence)
                logger.warning("skipped, another image in its place: %s", sentence)
        if len(self._broken) > self._max_broken:
            self.stop = True
            self.stop_reason = (
                f"{len(self._broken)} images could not be read, more than the {self._max_broken} "
                f"of DATALOADER.MAX_BROKEN_IMAGES: {first_of(sorted(self._broken))}"
            )

    def _share(self, losses: dict[str, float], data_time: float) -> None:
        """Exchange the losses of all processes, and whether one wants to stop, in one operation."""
        everyone = comm.all_gather((losses, data_time, self.stop))
        self.stopped = any(stop for _, _, stop in everyone)
        means = {k: float(np.mean([one[k] for one, _, _ in everyone])) for k in losses}
        broken = [name for name, value in means.items() if not np.isfinite(value)]
        if broken:
            terms = ", ".join(f"{name} = {value:.4g}" for name, value in means.items())
            raise NonFiniteLoss(
                f"iteration {self.iter}: the loss is not finite ({terms}). {_WAY_OUT}"
            )
        storage = get_event_storage()
        storage.put_scalars(total_loss=sum(means.values()), **means)
        storage.put_scalar("data_time", max(seconds for _, seconds, _ in everyone))

    def state_dict(self) -> dict:
        """The optimizer's state, and the scaler's if there is one."""
        state = super().state_dict()
        if self.scaler:
            state["grad_scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state; a scaler starts fresh if that run had none, as in another precision."""
        super().load_state_dict(state_dict)
        if self.scaler and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])
