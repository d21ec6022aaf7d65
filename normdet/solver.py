"""The optimizer: detectron2's, with every norm's parameters where they belong."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import LayerNorm
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from .layers import NormLayer, WeightMethod

# Norms that are not ours but may stand in a model of ours; torch's own detectron2 finds.
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


def optimizer_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """detectron2's parameter groups, but no norm's parameter decays unless it is asked to.

    What a norm's `rates` names trains at that multiple of the learning rate.
    `SOLVER.WEIGHT_DECAY_NORM` (0 by default) holds for all norms; detectron2's own builder knows a
    closed tuple of torch's types and decays the rest with the weights.
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    ours, rates = set(norm_parameters(model)), _own_rates(model)
    single = []
    for group in groups:
        for p in group["params"]:
            lr = group["lr"] * rates.get(p, 1.0)
            decay = cfg.SOLVER.WEIGHT_DECAY_NORM if p in ours else group["weight_decay"]
            single.append({**group, "params": [p], "lr": lr, "weight_decay": decay})
    return _merged(single)


def _own_rates(model: nn.Module) -> dict[nn.Parameter, float]:
    """Parameters that train at a multiple of the learning rate, such as BIN's gate."""
    return {
        getattr(module, name): rate
        for module in model.modules()
        if isinstance(module, NormLayer)
        for name, rate in module.rates().items()
    }


def _merged(groups: list[dict]) -> list[dict]:
    """One group per set of hyperparameters: the fused optimizers like few."""
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
