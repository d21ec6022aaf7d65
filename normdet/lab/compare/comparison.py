"""A comparison in progress: the runs that remain, their scheduler, and the report."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from normdet.engine.launch import Interrupted
from normdet.errors import NormdetError
from normdet.lab.child import interruptible
from normdet.lab.compare import local
from normdet.lab.compare.cell import Task
from normdet.lab.compare.display import Display
from normdet.lab.compare.plan import Cell, Plan, config_hash
from normdet.lab.compare.ray_pool import RayPool
from normdet.lab.compare.runs import CRASHED, TEST, TUNING, Run, Runs, primary_metric, read_run


class Comparison:
    """The runs of a plan in their folder."""

    def __init__(self, plan: Plan, args: argparse.Namespace):
        self.plan = plan
        self._out: Path = args.out.resolve()
        self._args = args
        self._runs = Runs(self._out)
        self._tasks: dict[Cell, Task] = {}
        self._console = Console(highlight=False)

    def run(self) -> None:
        """Run every cell without a result: first those that pick rates, then those reported."""
        tuning = self.plan.tuning_cells()
        pool = self._pool()
        display = Display(self._console, len(tuning) + len(self.plan.tested))
        with interruptible():
            try:
                with display:
                    self._run(tuning, pool, display)
                    self._run(self.plan.test_cells(self.chosen()), pool, display)
            except Interrupted as interrupt:
                raise self._interrupted(interrupt) from None
            finally:
                pool.close()

    def _run(self, cells: Sequence[Cell], pool, display: Display) -> None:
        tasks = [self.task(cell) for cell in cells]
        finished = self._finished(tasks)
        for run in self._runs:
            if run.memory_mb and run.finished:
                pool.learn(run.norm, run.batch_size, run.memory_mb)
        display.add(tasks, finished)
        for task in tasks:
            if task.folder.name not in finished:
                pool.submit(task)
        while pool.busy:
            for task, run in pool.wait(1.0):
                if run is not None:
                    self._runs.add(run)
                    display.ended(task, run)
            display.refresh(pool.running)

    def _finished(self, tasks: Iterable[Task]) -> dict[str, Run]:
        """The finished runs by folder, after a check that all have this config.

        Raises:
            NormdetError: the folder holds a run of another config.
        """
        found = {}
        for task in tasks:
            run = self._runs.get(task.folder.name)
            begun = run or read_run(task.start_file)
            if begun and begun.config_hash != task.run.config_hash:
                raise NormdetError(
                    f"{task.folder} holds {task.title} of another config (hash "
                    f"{begun.config_hash}, now {task.run.config_hash}): give another --out, "
                    "or the variant another name"
                )
            if run and run.finished:
                found[task.folder.name] = run
        return found

    def chosen(self) -> dict[tuple[str, int], float]:
        """The rate's factor by norm and batch size, picked by AP on the validation split.

        Runs that diverged have no AP and cannot win. If all diverged, it is the lowest rate.
        """
        runs = self._of(map(self.task, self.plan.tuning_cells()))
        picked = {}
        for arm, size in self.plan.grid:
            own = [
                run for run in runs
                if run.finished and (run.norm, run.batch_size) == (arm.name, size)
            ]  # fmt: skip
            if len(own) == len(self.plan.factors):
                picked[arm.name, size] = best_factor(own, self._args.metric)
        return picked

    def _of(self, tasks: Iterable[Task]) -> list[Run]:
        """The runs of these tasks that have ended."""
        return [run for task in tasks if (run := self._runs.get(task.folder.name))]

    def task(self, cell: Cell) -> Task:
        """The task of a cell, made when first needed."""
        if cell not in self._tasks:
            self._tasks[cell] = self._task(cell)
        return self._tasks[cell]

    def _task(self, cell: Cell) -> Task:
        folder = self._out / "cells" / cell.slug
        cfg = self.plan.config(cell)
        words = self.plan.arguments(cell, folder)
        run = Run(
            name=cell.slug,
            dataset=_dataset(cfg.DATASETS.ROOT, cfg.DATASETS.TEST[0]),
            norm=cell.arm.name,
            batch_size=cell.batch_size,
            seed=cell.seed,
            init=cfg.MODEL.WEIGHTS or "random",
            option=cell.arm.option,
            role=TUNING if cell.tuning else TEST,
            lr=cfg.SOLVER.BASE_LR,
            lr_factor=cell.factor,
            iterations=cfg.SOLVER.MAX_ITER,
            images_seen=cfg.SOLVER.MAX_ITER * cell.batch_size,
            config_hash=config_hash(cfg),
        )
        command = (sys.executable, "-m", "normdet", "train", *words)
        return Task(cell.title, folder, command, run, self._args.keep_checkpoints)

    def _pool(self):
        args = self._args
        device = self.plan.base.MODEL.DEVICE
        on_gpu = device.startswith("cuda") and (bool(args.ray) or bool(local.visible_gpus()))
        if args.ray:
            pool = RayPool(args.ray, args.threads or 1, args.gpu_share if on_gpu else 0)
            if on_gpu and not pool.gpus:
                self._say(
                    "the cluster has no GPU: runs wait until a machine with one joins it; "
                    "MODEL.DEVICE cpu runs without"
                )
            return pool
        cores = local.usable_cores()
        gpus = local.visible_gpus() if on_gpu else []
        most = len(gpus) * max(1, int(1 / args.gpu_share + 1e-9)) if gpus else cores
        jobs = min(args.jobs or most, most) if gpus else args.jobs or most
        threads = args.threads or max(1, cores // jobs)
        return local.LocalPool(local.slots(jobs, gpus, args.gpu_share, threads))

    def _interrupted(self, interrupt: Interrupted) -> Interrupted:
        done = sum(run.finished for run in self._of(self._tasks.values()))
        return Interrupted(
            f"{interrupt}; {done} runs are done, those in flight are saved where they stood, and "
            "the same command goes on",
            interrupt.signal,
        )

    def report(self, command: str) -> int:
        """Write the table and the report of the plan's cells; return 1 if some crashed."""
        from normdet.lab.compare.report import write_report

        tuning = [self.task(cell) for cell in self.plan.tuning_cells()]
        self._finished(tuning)
        tested = [self.task(cell) for cell in self.plan.test_cells(self.chosen())]
        self._finished(tested)
        self._runs.write_table()
        runs = self._of([*tuning, *tested])
        crashed = [run for run in runs if run.status == CRASHED]
        if not any(run.role == TEST and run.finished for run in runs):
            raise NormdetError(f"{self._out}: no run has a result yet: there is nothing to report")
        write_report(
            self._out, runs, baseline=self._args.baseline or self.plan.baseline,
            metric=self._args.metric, command=command, plan=self.plan,
        )  # fmt: skip
        for run in crashed:
            log = self._out / "cells" / run.name / "output.txt"
            self._say(f"crashed: {run.name}: {run.note}; its log is {log}")
        self._say(f"report: {self._out / 'report.html'}")
        return 1 if crashed else 0

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def best_factor(runs: Sequence[Run], metric: str | None = None) -> float:
    """The rate's factor of the run with the highest metric; the lowest factor if none has one."""
    metric = metric or primary_metric(runs)
    scored = [run for run in runs if run.score(metric) is not None]
    if not scored:
        return min(run.lr_factor for run in runs)
    return max(scored, key=lambda run: (run.score(metric), -run.lr_factor)).lr_factor


def _dataset(root: str, text: str) -> str:
    return f"{Path(root).name} {text}" if root else text

