"""Time a whole training step of Mask R-CNN R50-FPN under several norms, on random images."""

import time
from collections.abc import Collection, Iterator

import torch

from normdet.lab.bench import measure

NORMS = ("FrozenBN", "BN", "GN", "GN+WS", "FRN+TLU")
CONFIG = "coco/mask_rcnn_R_50_FPN_1x.yaml"
# Random weights, so that rows differ in the norm alone.
OPTIONS = ("MODEL.WEIGHTS", "")


# What may follow a norm's name, and the key that it sets.
RECOMPUTE, FOLDED, LAST = ", recompute", ", folded", ", channels last"
_KEYS = {
    RECOMPUTE: "MODEL.NORMDET.RECOMPUTE", FOLDED: "MODEL.NORMDET.FOLD_FIXED",
    LAST: "MODEL.NORMDET.CHANNELS_LAST",
}  # fmt: skip


def rows(
    device: str,
    norms: tuple[str, ...],
    size: int,
    seconds: float,
    done: Collection[tuple[str, str]] = (),
    budget: float | None = None,
    freeze_at: int = 0,
) -> Iterator[dict]:
    """Per norm: a training step and inference on two images, and the largest batch that fits.

    Norms take turns in both timings, so that a busy moment affects all of them alike.

    Args:
        norms: options, each perhaps followed by :data:`RECOMPUTE`, :data:`FOLDED`, :data:`LAST`.
        done: `(op, provider)` of rows that exist already; an incomplete timing is repeated whole.
        budget: GB that a step may take beyond the model; on a GPU, None means all of its memory.
        freeze_at: frozen stages of the backbone.
    """

    def missing(op: str) -> list[str]:
        return [norm for norm in norms if (op, norm) not in done]

    timed = [op for op in ("training step", "inference") if missing(op)]
    if timed:
        steps = {norm: _Step(norm, device, size, freeze_at=freeze_at) for norm in norms}
        for op in timed:
            yield from _timings(op, steps, seconds)
        del steps  # the models leave the device
    for norm in missing("largest batch") if device == "cuda" or budget else ():
        largest = _largest_batch(norm, device, size, budget, freeze_at)
        yield row_of("largest batch", norm, device, f"Nx3x{size}x{_width(size)}") | {
            "mode": "both" if budget is None else f"both, within {budget:g} GB",
            "largest_batch": largest,
        }


def row_of(op: str, norm: str, device: str, shape: str) -> dict:
    return {
        "op": op,
        "shape": shape,
        "dtype": "bfloat16 autocast" if device == "cuda" else "float32",
        "layout": "contiguous",
        "provider": norm,
    }


def _timings(op: str, steps: dict[str, "_Step"], seconds: float) -> Iterator[dict]:
    training = op == "training step"
    device = next(iter(steps.values())).device
    calls = {norm: step if training else step.inference for norm, step in steps.items()}
    for step in steps.values():
        step.model.train(training)
    times = measure.interleaved(calls, device, seconds, warmup=1, least=3)
    first = None
    for norm, step in steps.items():
        low, median, high = measure.quartiles(times[norm])
        first = first or median
        yield row_of(op, norm, device, f"2x3x{step.size}x{step.width}") | {
            "mode": "both" if training else "forward",
            "median_ms": round(median, 2),
            "q25_ms": round(low, 2),
            "q75_ms": round(high, 2),
            "kept_bytes": step.kept() if training else None,
            "peak_bytes": measure.peak_bytes(calls[norm], device),
            "over_first": round(median / first, 3),
        }


def _width(size: int) -> int:
    return (size * 4 // 3 + 31) // 32 * 32


class _Step:
    """Forward, backward and update of one model on the same images every time."""

    def __init__(self, norm: str, device: str, size: int, batch: int = 2, freeze_at: int = 0):
        from detectron2.modeling import build_model

        import normdet.config
        import normdet.modeling
        from normdet.solver import build_optimizer

        norm, _, way = norm.partition(", ")
        options = [
            "MODEL.DEVICE", device, *OPTIONS, "MODEL.BACKBONE.FREEZE_AT", str(freeze_at),
            *((_KEYS[f", {way}"], "True") if way else ()),
        ]  # fmt: skip
        cfg = normdet.config.load_config(normdet.config.config_file(CONFIG), options, norm)
        torch.manual_seed(0)
        self.model = build_model(cfg).train()
        if cfg.MODEL.NORMDET.CHANNELS_LAST:
            self.model.to(memory_format=torch.channels_last)
        head = self.model.proposal_generator.rpn_head
        for layer in (head.objectness_logits, head.anchor_deltas):
            torch.nn.init.zeros_(layer.weight)  # every norm proposes the anchors
        self.optimizer = build_optimizer(cfg, self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # every step sees the same weights
        self.device, self.size, self.width = device, size, _width(size)
        self.inputs = [_image(size, self.width, seed) for seed in range(batch)]

    def losses(self) -> torch.Tensor:
        from detectron2.utils.events import EventStorage

        torch.manual_seed(0)  # the proposals are sampled
        with (
            EventStorage(),
            torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"),
        ):
            return sum(self.model(self.inputs).values())

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.losses().backward()
        self.optimizer.step()

    @torch.no_grad()
    def inference(self) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            self.model(self.inputs)

    def kept(self) -> int:
        return measure.held_bytes(self.losses, self.device)


def _image(height: int, width: int, seed: int) -> dict:
    from detectron2.structures import BitMasks, Boxes, Instances

    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(8, 2, generator=generator) * torch.tensor([width * 0.6, height * 0.6])
    extent = torch.rand(8, 2, generator=generator) * torch.tensor([width, height]) * 0.3 + 16
    boxes = torch.cat([corner, corner + extent], 1)
    masks = torch.zeros(8, height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances(
        (height, width),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.arange(8),
        gt_masks=BitMasks(masks),
    )
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances}


def _largest_batch(norm: str, device: str, size: int, budget: float | None, freeze_at: int) -> int:
    """Find the largest batch by doubling, then halving the gap. Every batch size is really run.

    Args:
        budget: GB beyond the model, or None for all of the GPU.
    """
    fits, fails = 0, None
    while fails is None or fails - fits > 1:
        batch = max(1, fits * 2) if fails is None else (fits + fails) // 2
        started = time.perf_counter()
        if _fits(norm, device, size, batch, budget, freeze_at):
            fits = batch
        else:
            fails = batch
        if batch >= 512 or time.perf_counter() - started > 600:
            break
    return fits


def _fits(norm, device, size, batch, budget, freeze_at) -> bool:
    try:
        step = _Step(norm, device, size, batch, freeze_at)
        step.optimizer.zero_grad()
        if budget is None:
            step()
            return True
        return measure.peak_bytes(step, device) <= budget * 1e9
    except torch.OutOfMemoryError:
        return False
    finally:
        if device == "cuda":
            step = None
            torch.cuda.empty_cache()
