"""detectron2's optimizer, with every norm's parameters in the group for norms."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import LayerNorm
from detectron2.solver import build
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from .layers import NormLayer, WeightMethod

_detectron2_groups = build.get_default_optimizer_params
# Norms of others that a model of ours may hold; detectron2 itself finds those of torch.
_FOREIGN_NORMS = (LayerNorm,)


def norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every parameter of a norm or a learned activation: gamma, beta, tau, epsilon, WN's gain.

    Asks the layers; torch's own norms and detectron2's are known as well.
    """
    for module in model.modules():
        if isinstance(module, NormLayer | WeightMethod):
            yield from module.norm_parameters()
        elif isinstance(module, _FOREIGN_NORMS):
            yield from module.parameters(recurse=False)


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
    """SGD as detectron2 builds it, over :func:`optimizer_groups`, with its gradient clipping."""
    sgd = torch.optim.SGD(
        optimizer_groups(cfg, model),
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
    return maybe_add_gradient_clipping(cfg, sgd)


def decay_no_norm_in_detectron2() -> None:
    """Let detectron2's own `build_optimizer`, as `DefaultTrainer` calls it, know our norms too."""
    build.get_default_optimizer_params = get_default_optimizer_params
