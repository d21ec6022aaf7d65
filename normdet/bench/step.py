"""A whole training step of Mask R-CNN R50-FPN, one norm against another, on made-up images."""

import time
from collections.abc import Iterator

import torch

from normdet.bench import measure

NORMS = ("FrozenBN", "BN", "GN", "GN+WS", "FRN+TLU")
CONFIG = "coco/mask_rcnn_R_50_FPN_1x.yaml"
# Random weights, and nothing frozen but by its norm: the rows differ in the norm alone.
OPTIONS = ("MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0")


def rows(device: str, norms: tuple[str, ...], size: int, seconds: float) -> Iterator[dict]:
    """One row per norm: time and memory of a step of two images; on a GPU, the largest batch."""
    steps = {norm: _Step(norm, device, size) for norm in norms}
    times = measure.interleaved(steps, device, seconds, warmup=1, least=3)
    for norm, step in steps.items():
        low, median, high = measure.quartiles(times[norm])
        yield {
            "op": "training step",
            "shape": f"2x3x{size}x{step.width}",
            "dtype": "bfloat16 autocast" if device == "cuda" else "float32",
            "layout": "contiguous",
            "provider": norm,
            "mode": "both",
            "median_ms": round(median, 2),
            "q25_ms": round(low, 2),
            "q75_ms": round(high, 2),
            "kept_bytes": step.kept(),
            "peak_bytes": measure.peak_bytes(step, device),
            "over_first": round(median / measure.quartiles(times[norms[0]])[1], 3),
        }
    if device == "cuda":
        steps.clear()
        del step  # the last model leaves the device too
        for norm in norms:
            yield {
                "op": "largest batch",
                "shape": f"Nx3x{size}x{_width(size)}",
                "dtype": "bfloat16 autocast",
                "layout": "contiguous",
                "provider": norm,
                "mode": "both",
                "largest_batch": _largest_batch(norm, size),
            }


def _width(size: int) -> int:
    return (size * 4 // 3 + 31) // 32 * 32


class _Step:
    """Forward, backward and update of one model on the same images every time."""

    def __init__(self, norm: str, device: str, size: int, batch: int = 2):
        from detectron2.modeling import build_model

        import normdet.config
        import normdet.modeling
        from normdet.solver import build_optimizer

        cfg = normdet.config.load_config(
            normdet.config.config_file(CONFIG), ["MODEL.DEVICE", device, *OPTIONS], norm
        )
        torch.manual_seed(0)
        self.model = build_model(cfg).train()
        head = self.model.proposal_generator.rpn_head
        for layer in (head.objectness_logits, head.anchor_deltas):
            torch.nn.init.zeros_(layer.weight)  # proposals are anchors: as many for every norm
        self.optimizer = build_optimizer(cfg, self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # every step sees the same weights
        self.device, self.width = device, _width(size)
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

    def kept(self) -> int:
        return measure.kept_bytes(self.losses, list(self.model.parameters()))


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


def _largest_batch(norm: str, size: int) -> int:
    """Doubles, then halves the gap, until a step no longer fits in device memory."""
    fits, fails = 0, None
    while fails is None or fails - fits > 1:
        batch = max(1, fits * 2) if fails is None else (fits + fails) // 2
        started = time.perf_counter()
        try:
            _Step(norm, "cuda", size, batch)()
            fits = batch
        except torch.OutOfMemoryError:
            fails = batch
        torch.cuda.empty_cache()
        if batch >= 512 or time.perf_counter() - started > 120:
            break
    return fits
