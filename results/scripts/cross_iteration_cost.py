#!/usr/bin/env python3
"""What cross-iteration BN (2002.05712) would cost over BN: CPU time and memory of a training step.

    python results/scripts/cross_iteration_cost.py --out results/cross_iteration.csv

A ResNet under BN is timed as it is, and with the extra work of the method at each convolution: the
gradients of the batch's mean and mean square by the convolution's own weight, and the Taylor
compensation of those of the last iterations (equations 5 to 9). The statistics are not used, so
this is the cost alone. The gradient of the mean is the same for all filters, which is made use of.
"""

import argparse
import csv
import datetime
import time
from importlib.metadata import version
from pathlib import Path

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from normdet.config import load_config

COLUMNS = "backbone images size window measure value versions date".split()


class Window:
    """What one convolution keeps of its last iterations, and what it does with it in a step."""

    def __init__(self, conv: nn.Conv2d, length: int):
        self.conv, self.length = conv, length
        self.kept: list[tuple[Tensor, ...]] = []

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> None:
        conv, count = self.conv, y.numel() // y.shape[1]
        mean, square = y.mean((0, 2, 3)), y.square().mean((0, 2, 3))
        one = torch.full_like(y[:, :1], 1 / count)
        shape = (1, *conv.weight.shape[1:])
        of_mean = conv2d_weight(x, shape, one, conv.stride, conv.padding, conv.dilation)
        of_square = conv2d_weight(
            x, conv.weight.shape, y * (2 / count), conv.stride, conv.padding, conv.dilation
        )
        new = mean, square, of_mean, of_square, conv.weight.clone()
        for old_mean, old_square, by_mean, by_square, weight in self.kept:
            moved = conv.weight - weight
            expected = old_mean + (moved * by_mean).sum((1, 2, 3))
            mean = mean + expected
            old_square = old_square + (moved * by_square).sum((1, 2, 3))
            square = square + torch.maximum(old_square, expected.square())
        self.kept = [*self.kept, new][1 - self.length :]

    def fill(self) -> None:
        """As after many iterations."""
        self.kept = [tuple(t.clone() for t in self.kept[0]) for _ in range(self.length - 1)]

    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for kept in self.kept for t in kept)


def build(depth: int) -> nn.Module:
    return build_backbone(
        load_config(
            "pretrain/base.yaml",
            ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS",
             64 if depth < 50 else 256],
        ),
        ShapeSpec(channels=3),
    ).train()  # fmt: skip


def seconds(net: nn.Module, x: Tensor, steps: int) -> float:
    """CPU time of the fastest forward and backward, on one thread."""
    best = float("inf")
    for _ in range(steps):
        start = time.process_time()
        sum(y.square().mean() for y in net(x).values()).backward()
        best = min(best, time.process_time() - start)
        net.zero_grad()
    return best


def measure(depth: int, images: int, size: int, length: int, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    net, x = build(depth), torch.randn(images, 3, size, size)
    plain = seconds(net, x, steps)
    windows = []
    for conv in [m for m in net.modules() if isinstance(m, nn.Conv2d)]:
        window = Window(conv, length)
        windows.append(window)
        # Dressed convolutions call their norm themselves: work on its input.
        conv.norm.register_forward_pre_hook(lambda _, inputs, w=window: w.seen(inputs[0]))
        conv.register_forward_pre_hook(lambda _, inputs, w=window: setattr(w, "x", inputs[0]))
        window.seen = lambda y, w=window: w.step(w.x, y)
    seconds(net, x, 1)
    for window in windows:
        window.fill()
    crossed = seconds(net, x, steps)
    return {
        "step of BN, s": plain,
        "step with the method's work, s": crossed,
        "kept over iterations, MB": sum(w.bytes() for w in windows) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("results/cross_iteration.csv"), help="the table")
    add("--depths", type=lambda text: [int(n) for n in text.split(",")], default=[18, 50])
    add("--images", type=int, default=2)
    add("--size", type=int, default=256)
    add("--window", type=int, default=8, help="iterations, this one included (the paper's 8)")
    add("--steps", type=int, default=3, help="of which the fastest counts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for depth in args.depths:
            found = measure(depth, args.images, args.size, args.window, args.steps)
            for name, value in found.items():
                row = {
                    "backbone": f"R{depth}", "images": args.images, "size": args.size,
                    "window": args.window, "measure": name, "value": f"{value:.3f}",
                    "versions": f"torch {version('torch')}",
                    "date": datetime.date.today().isoformat(),
                }  # fmt: skip
                writer.writerow(row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
