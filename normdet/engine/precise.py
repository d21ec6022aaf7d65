"""Replace running averages by exact statistics before evaluations and after training."""

import itertools
import logging

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from normdet.engine.loader import derived_seed, seeded
from normdet.layers.population import learning_norms
from normdet.modeling.training_pass import update_statistics

logger = logging.getLogger(__name__)


class PreciseStatistics(HookBase):
    """detectron2's `PreciseBN` for every norm with running averages, the same in all processes.

    Runs before each evaluation and after the last step. Which images it sees and what it draws
    follow from the seed and the iteration, so that a resumed run repeats the one that was not
    stopped.

    Args:
        period: iterations between two updates; 0 for the one at the end alone.
        model: the one that trains.
        loader: of :func:`.loader.same_batches`; its position is not that of the training loader.
        batches: the number of batches to run.
        seed: of the run.
    """

    def __init__(self, period: int, model: nn.Module, loader: DataLoader, batches: int, seed: int):
        self._period, self._model = period, model
        self._loader, self._batches, self._seed = loader, batches, seed

    def after_step(self) -> None:
        """Update if an evaluation or the end of training follows."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period and done % self._period == 0):
            self.update()

    def update(self) -> None:
        """Run the batches that follow the iteration, and put their moments into the norms."""
        if not learning_norms(self._model):
            return
        self._loader.batch_sampler.start = self.trainer.iter + 1
        batches = itertools.islice(self._loader, self._batches)
        seed = derived_seed("precise", self._seed, self.trainer.iter, comm.get_rank())
        with seeded(seed):
            names = update_statistics(self._model, batches)
        logger.info("exact statistics of %d norms from %d batches", len(names), self._batches)
