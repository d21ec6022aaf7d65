"""Runs of an invented comparison, with differences like those of the papers."""

import random
from dataclasses import replace

from normdet.lab.compare.runs import Run

EFFECT = {"FrozenBN": 0.0, "BN": -1.0, "GN": 2.0, "GN+WS": 2.4, "FRN+TLU": 2.2}
BN_LOSS = {1: 20.0, 2: 8.0, 4: 2.0, 8: 0.0}


def runs(seeds=3, sizes=(1, 2, 4, 8), norms=tuple(EFFECT)):
    """BN falls at small batches, and one of its seeds diverges at 1 image."""
    draw = random.Random(0)
    made = []
    for norm in norms:
        for size in sizes:
            for seed in range(1, seeds + 1):
                ap = 40 + EFFECT[norm] + draw.gauss(0, 0.5) + 0.3 * seed
                ap -= BN_LOSS[size] if norm == "BN" else 0
                run = run_of(norm, size, seed, ap)
                if (norm, size, seed) == ("BN", 1, 2):
                    note = "iteration 7: the loss is not finite (loss_cls = nan)"
                    run = replace(run, status="diverged", scores={}, note=note)
                if (norm, size, seed) == ("GN+WS", 4, 1):
                    note = "killed by SIGKILL (out of memory?)"
                    run = replace(run, status="crashed", scores={}, note=note)
                made.append(run)
    return made


def run_of(norm, size, seed, ap, **changes):
    row = {
        "run": f"{norm.replace('+', '_')}-b{size}-s{seed}",
        "dataset": "nuclei coco:val.json:images",
        "norm": norm, "batch_size": size, "seed": seed, "init": "random", "option": norm,
        "role": "test", "status": "done", "box_AP": ap + 1, "mask_AP": ap, "lr": 0.01 * size,
        "lr_factor": 1.0, "iterations": 2400 // size, "images_seen": 2400,
        "config_hash": "0123456789ab", "commit": "abcdef012345", "step_s": 0.2 + 0.15 * size,
        "train_s": 2400 * 0.15, "wall_s": 500.0, "memory_mb": 900 + 200 * size,
        "gpu_memory_mb": None, "versions": "normdet 0.1.0, torch 2.14.1", "machine": "a machine",
        "date": "2026-11-21T10:00Z", "note": "",
    }  # fmt: skip
    return Run.from_row({**row, **changes})
