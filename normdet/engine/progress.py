"""A progress bar on a terminal. Elsewhere detectron2's plain lines are used."""

import psutil
import torch
from detectron2.engine import HookBase
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def memory_used() -> str:
    """This process's memory, or on a GPU the most its tensors have taken: "1.2 GB"."""
    text = f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"
    if torch.cuda.is_available():
        text += f" + {torch.cuda.max_memory_allocated() / 1e9:.1f} GB GPU"
    return text


class ProgressBar(HookBase):
    """Loss, time left and memory of a run, on one line that stays in place.

    Args:
        console: the terminal; messages printed through it appear above the line.
    """

    def __init__(self, console: Console):
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
            console=console,
        )

    def before_train(self) -> None:
        """Show the line."""
        self._task = self._progress.add_task(
            "train",
            total=self.trainer.max_iter,
            completed=self.trainer.start_iter,
            loss="-",
            memory=memory_used(),
        )
        self._progress.start()

    def after_step(self) -> None:
        """Advance by one step."""
        loss = self.trainer.storage.history("total_loss").median(20)
        self._progress.update(
            self._task,
            completed=self.trainer.iter + 1,
            loss=f"{loss:.3f}",
            memory=memory_used(),
        )

    def after_train(self) -> None:
        """Leave the last state of the line."""
        self._progress.stop()
