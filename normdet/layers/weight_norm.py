"""Weight Normalization (Salimans and Kingma, 1602.07868) with its data-dependent start."""

import torch
from torch import nn

from ..errors import NormdetError
from .moments import pool_workers, several_workers
from .reparametrized import Reparametrized, WeightMethod, linear, per_output, reparametrize


class WeightNorm(WeightMethod):
    """`g * v / |v|` per output channel, `v` being the layer's `weight` (1602.07868, eq. 2).

    The first training forward after a random start sets `g`, and the layer's bias if it has one, so
    that pre-activations have mean 0 and variance 1 over the batch of all workers (eq. 5 and 6). A
    layer without a bias leaves the mean to its norm. With loaded weights there is no such start:
    plain ones get `g = |v|`, which keeps their function.

    Saves nothing of activation size; the start costs one more forward of the layer.

    Args:
        weight: the layer's.
        out_dim: the dimension of its output channels.

    Raises:
        NormdetError: it is to start from data, and FSDP2 has sharded its parameters.
    """

    def __init__(self, weight: torch.Tensor, out_dim: int = 0):
        super().__init__()
        self._is_sharded = False
        self.out_dim = out_dim
        self.g = nn.Parameter(self.fit(weight)["g"])
        self.starting = True

    def __setattr__(self, name: str, value: object) -> None:
        # `fully_shard` assigns what it shards. In a forward it puts whole copies in its place, and
        # what is written to these is lost.
        if name == "g" and hasattr(value, "full_tensor"):
            self._is_sharded = True
        super().__setattr__(name, value)

    def _norm(self, weight: torch.Tensor) -> torch.Tensor:
        dims, wide = per_output(weight, self.out_dim)
        return torch.linalg.vector_norm(wide, dim=dims, keepdim=True)

    @torch.no_grad()
    def fit(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """`g` `(C_out, 1, ...)` under which the weight is unchanged."""
        return {"g": self._norm(weight).to(weight.dtype)}

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        norm = self._norm(weight)
        # A filter of zeros, as in pruned networks, stays zero and does not become NaN.
        scale = self.g / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        return (weight * scale).to(weight.dtype)

    @torch.no_grad()
    def start(self, layer: Reparametrized, x: torch.Tensor) -> None:
        """Set `g` and the layer's bias by `x`; every worker must call it, with any share.

        A channel that does not vary keeps its `g`. If all workers together have no more than one
        value per channel, the next input starts the layer.
        """
        if self._is_sharded:
            raise NormdetError(
                "WN takes its start from the first training forward, which cannot write to weights "
                "that fully_shard has sharded: run one forward in training mode before "
                "fully_shard, or load weights"
            )
        y = linear(layer, x, self(layer.weight), None)
        channels_last = y if isinstance(layer, nn.Linear) else y.movedim(1, -1)
        wide = torch.promote_types(y.dtype, torch.float32)
        mean, var, count = _moments(channels_last.flatten(0, -2).to(wide))
        if count <= 1:
            return
        scale = torch.where(var > 1e-10, var, 1.0).rsqrt()
        self.g.mul_(scale.view_as(self.g))
        if layer.bias is not None:
            layer.bias.copy_(-mean * scale)
        self.starting = False


def _moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean, biased variance and number of the rows `(M, C)` of all workers."""
    count = len(rows)
    mean = rows.sum(0) / max(count, 1)
    var = (rows - mean).square().sum(0) / max(count, 1)
    if not several_workers():
        return mean, var, count
    mean, var, total = pool_workers(mean, var, rows.new_tensor(count))
    return mean, var, int(total)


def weight_norm(module: nn.Module) -> nn.Module:
    """The module, of Conv2d, ConvTranspose2d or Linear, under :class:`WeightNorm`."""
    return reparametrize(module, WeightNorm)
