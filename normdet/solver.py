"""detectron2's optimizer, with every norm's parameters in the group for norms."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.layers import batch_norm
from detectron2.solver import build
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from .layers import NormLayer, WeightMethod

_detectron2_groups = build.get_default_optimizer_params
# Norms of others that a model of ours may hold; detectron2 itself finds those of torch. v0.6 has
# no channel-wise LayerNorm.
_FOREIGN_NORMS = tuple(filter(None, [getattr(batch_norm, "LayerNorm", None)]))


def norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every parameter of a norm or a learned activation: gamma, beta, tau, epsilon, WN's gain.

    Asks the layers; torch's own norms and detectron2's are known as well.
    """
    for module in model.modules():
        if isinstance(module, NormLayer | WeightMethod):
            yield from module.norm_parameters()
        elif isinstance(module, _FOREIGN_NORMS):
            yield from module.parameters(recurse=False)
        elif isinstance(gain := getattr(module, "gain", None), nn.Parameter):
            yield gain  # of a scaled standardized convolution of timm


def get_default_optimizer_params(
    model: nn.Module, *, weight_decay_norm: float | None = None, **options
) -> list[dict]:
    """detectron2's parameter groups, but `weight_decay_norm` holds for every norm's parameters.

    detectron2's own knows a closed tuple of torch's norms and decays the rest with the weights.
    Parameters in a norm's `rates` train at that multiple of the learning rate. For LazyConfig:
    `L(normdet.get_default_optimizer_params)(base_lr=0.02, weight_decay_norm=0.0)`.

    Args:
        weight_decay_norm: None decays norms as weights.
        options: see `detectron2.solver.get_default_optimizer_params`.
    """
    groups = _detectron2_groups(model, weight_decay_norm=weight_decay_norm, **options)
    ours, rates = set(norm_parameters(model)), _own_rates(model)
    single = []
    for group in groups:
        for p in group["params"]:
            own = {**group, "params": [p]}
            if p in rates and "lr" in group:
                own["lr"] = group["lr"] * rates[p]
            if p in ours and weight_decay_norm is not None:
                own["weight_decay"] = weight_decay_norm
            single.append(own)
    return _merged(single)


def optimizer_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """:func:`get_default_optimizer_params` as the config's `SOLVER` says."""
    return get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )


def _own_rates(model: nn.Module) -> dict[nn.Parameter, float]:
    """Parameters that train at a multiple of the learning rate, such as BIN's gate."""
    return {
        getattr(module, name): rate
        for module in model.modules()
        if isinstance(module, NormLayer)
        for name, rate in module.rates().items()
    }


def _merged(groups: list[dict]) -> list[dict]:
    """One group per set of hyperparameters; the fused optimizers are faster with few groups."""
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = tuple(sorted((k, v) for k, v in group.items() if k != "params"))
        merged.setdefault(settings, {**group, "params": []})["params"] += group["params"]
    return list(merged.values())


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as detectron2 builds it, over :func:`optimizer_groups`, with its gradient clipping.

    `SOLVER.CLIP_GRADIENTS.CLIP_TYPE` may also be `"adaptive"` (:func:`clip_adaptively`), with the
    factor as `CLIP_VALUE`.
    """
    sgd = torch.optim.SGD(
        optimizer_groups(cfg, model),
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "adaptive":
        clip_adaptively(sgd, model, clip.CLIP_VALUE)
        return sgd
    return maybe_add_gradient_clipping(cfg, sgd)


# The last layers, which adaptive clipping leaves alone, by a word of their names.
_LAST = {"box_predictor", "predictor", "cls_score", "bbox_pred", "classifier"}


def clip_adaptively(
    optimizer: torch.optim.Optimizer, model: nn.Module, factor: float, eps: float = 1e-3
) -> None:
    """Clip gradients before each step, unit by unit, by the size of the weights (2102.06171).

    The gradient of a unit (an output channel of a weight; the whole of a vector) is scaled down to
    a norm of `factor * max(norm(unit), eps)` where it is larger (section 4.1, equation 3).
    Predictors and classifiers are left alone, as the authors leave the last layer. Costs a pass
    over weights and gradients a step.

    Args:
        optimizer: of the parameters of `model`.
        factor: 0.01 in the paper for batches of 4096, larger for smaller ones.
        eps: lets weights of zero move.
    """
    out_dims = {
        module.weight: 1
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvTransposeNd)
    }
    clipped = [
        (p, [d for d in range(p.dim()) if p.dim() == 1 or d != out_dims.get(p, 0)])
        for name, p in model.named_parameters()
        if p.requires_grad and not _LAST.intersection(name.split("."))
    ]

    @torch.no_grad()
    def clip(*_) -> None:
        for p, dims in clipped:
            if p.grad is None:
                continue
            norms = [torch.linalg.vector_norm(t, dim=dims, keepdim=True) for t in (p, p.grad)]
            most = norms[0].clamp(min=eps) * factor
            p.grad.mul_((most / norms[1].clamp(min=1e-6)).clamp(max=1.0))

    optimizer.register_step_pre_hook(clip)


def decay_no_norm_in_detectron2() -> None:
    """Let detectron2's own `build_optimizer`, as `DefaultTrainer` calls it, know our norms too."""
    build.get_default_optimizer_params = get_default_optimizer_params
