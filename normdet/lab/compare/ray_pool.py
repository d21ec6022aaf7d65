"""The scheduler of a Ray cluster: each cell is a task that asks for its share of a machine.

Every machine must have normdet, and the output folder and the data under the same paths.
"""

import os
import signal
import threading
from dataclasses import replace

from normdet.errors import NormdetError
from normdet.lab.compare.cell import Task, run_cell
from normdet.lab.compare.runs import CRASHED, Run


class RayPool:
    """Runs cells on a Ray cluster.

    Args:
        address: of the cluster (`HOST:PORT`, `auto`, `ray://...`), or `local` for one that is
            started on this machine and ends with the comparison.
        threads: CPU cores each cell asks for, and the threads it computes with.
        share: the share of a GPU each cell asks for; 0 on CPUs.

    Raises:
        NormdetError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, threads: int, share: float):
        try:
            import ray
        except ImportError as error:
            raise NormdetError("--ray needs Ray: pip install 'normdet[ray]'") from error
        self._ray = ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray replaces the handler of SIGTERM and keeps it, even if it finds no cluster.
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise NormdetError(f"--ray {address}: no cluster answers there: {reason}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
        # If a machine is lost, Ray starts its cells again on another.
        self._run = ray.remote(run_cell).options(num_cpus=threads, num_gpus=share, max_retries=2)
        self.gpus: float = ray.cluster_resources().get("GPU", 0)
        self._env = {"OMP_NUM_THREADS": str(threads)}
        self._tasks: dict = {}

    def learn(self, norm: str, batch_size: int, memory: float) -> None:
        """Do nothing: Ray watches each machine's memory itself."""

    def submit(self, task: Task) -> None:
        """Hand a task to the cluster."""
        self._tasks[self._run.remote(task, self._env)] = task

    @property
    def running(self) -> list[Task]:
        """Tasks that have begun and not ended: those with a log."""
        return [task for task in self._tasks.values() if task.log.exists()]

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._tasks)

    def wait(self, seconds: float) -> list[tuple[Task, Run | None]]:
        """The runs that end within some seconds."""
        if not self._tasks:
            return []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        return [(task, self._outcome(ref, task)) for ref in ready if (task := self._tasks.pop(ref))]

    def close(self) -> None:
        """Cancel all tasks; a running cell can resume later from its last checkpoint."""
        for ref in self._tasks:
            self._ray.cancel(ref)
        if self._tasks:
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=30)
        self._ray.shutdown()

    def _outcome(self, ref, task: Task) -> Run | None:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.TaskCancelledError:
            return None
        except self._ray.exceptions.RayError as error:
            return replace(task.run, status=CRASHED, note=" ".join(str(error).split())[:300])
