"""Fused, differentiable functions behind the layers, and a plain reference beside each.

All take `x` `(N, C, *S)` of any rank from 2, contiguous, channels last or neither, also with N = 0,
and parameters `(C,)` or None. Statistics are computed in fp32 (fp64 for fp64) and the output has
the input's dtype. `activation` is None, "ReLU" or "TLU". TLU is `max(y, tau)`; on a tie the
gradient goes to `tau`.

`backend` chooses how:

- "auto": the fastest available: "cpp" on the CPU, "triton" on CUDA, else "eager". While a graph of
  standard operators is being recorded (`torch.jit.trace`, `torch.export`, ONNX), "reference".
- "reference": plain torch from the formula; differentiable any number of times.
- "eager": plain torch that keeps as little for backward as the kernels do.
- "cpp": compiled kernels on the CPU, built at first use.
- "triton": Triton kernels on CUDA.

Of a padded batch (:class:`normdet.ops.padded.Padded`) they take each image's part alone; statistics
of examples then come from "eager" in place of "triton".
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from normdet.errors import NormdetError
from normdet.files.words import listed
from normdet.ops import library, reference
from normdet.ops.padded import Padded, apart, like, plain, sizes

__all__ = [
    "act",
    "add_act",
    "check_dialect",
    "frn_tlu",
    "frozen_bn_act",
    "group_norm_act",
    "standardize_weight",
]

_KNOWS_EXPORTING = hasattr(torch.compiler, "is_exporting")  # torch 2.7
# The dialects of weight standardization: what the kernels divide by, and the usual epsilon.
_DIALECTS = {"jhu": ("deviation", 1e-5), "timm": ("group", 1e-6)}


def frn_tlu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None = None,
    *,
    eps: float | Tensor,
    num_groups: int | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Filter Response Norm and its activation (arXiv:1911.09737).

    Keeps `x` and one float per `(n, c)` for backward; with a residual its output as well.

    Args:
        eps: a number, or a tensor of one element that is learned.
        num_groups: groups whose channels share their mean square; by default each has its own.
        residual: shaped as `x`, added before the activation: the join of a residual block, in
            the same pass.
    """
    _check(x, tau, activation)
    if num_groups is not None:
        check_groups(num_groups, x.shape[1])
    if _plain(backend, x, residual):

        def plainly(x: Tensor, residual: Tensor | None = None) -> Tensor:
            return reference.frn_tlu(
                x, weight, bias, tau, eps=eps, num_groups=num_groups, activation=activation,
                residual=residual,
            )  # fmt: skip

        return _by_reference(plainly, x, residual, activation)
    return _norm_act(
        x, residual, weight, bias, tau, eps, "rms", num_groups or x.shape[1], activation, None,
        backend,
    )  # fmt: skip


def group_norm_act(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None = None,
    *,
    eps: float | Tensor,
    activation: str | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Group Norm and its activation (arXiv:1803.08494); one group is LN, C groups are IN.

    Keeps `x` and two floats per `(n, group)` for backward; with a residual its output as well.

    Args:
        eps: as in :func:`frn_tlu`.
        residual: as in :func:`frn_tlu`, of the output's dtype.
        dtype: the output's, by default the input's. A wider one costs no pass of its own.
    """
    _check(x, tau, activation)
    check_groups(num_groups, x.shape[1])
    if _plain(backend, x, residual, dtype):

        def plainly(x: Tensor, residual: Tensor | None = None) -> Tensor:
            return reference.group_norm_act(
                x, num_groups, weight, bias, tau, eps=eps, activation=activation,
                residual=residual, dtype=dtype,
            )  # fmt: skip

        return _by_reference(plainly, x, residual, activation)
    return _norm_act(
        x, residual, weight, bias, tau, eps, "group", num_groups, activation,
        None if dtype is x.dtype else dtype, backend,
    )  # fmt: skip


def _by_reference(run, x: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    others = () if residual is None else (residual,)
    if isinstance(x, Padded):
        return apart(run, x, *others, positive=activation == "ReLU")
    return run(x, *others)


def _norm_act(
    x: Tensor, residual: Tensor | None, weight, bias, tau, eps: float | Tensor, kind: str,
    groups: int, activation: str | None, dtype: torch.dtype | None, backend: str,
) -> Tensor:  # fmt: skip
    number, learned = (0.0, eps) if isinstance(eps, Tensor) else (eps, None)
    more = (weight, bias, tau, learned, kind, groups, number, activation, dtype, backend)
    if not isinstance(x, Padded):
        return library.norm_act(x, residual, *more, None)
    residual = None if residual is None else plain(residual)
    y = library.norm_act(plain(x), residual, *more, torch.tensor(sizes(x)))
    return like(y, x, clean=True, positive=activation == "ReLU")


def frozen_bn_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    tau: Tensor | None = None,
    *,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Frozen batch statistics and the activation: one fixed affine.

    Keeps only its output for backward. If the affine needs a gradient, the plain form is used.

    Args:
        residual: as in :func:`frn_tlu`.
    """
    _check(x, tau, activation)
    if isinstance(x, Padded):
        y = frozen_bn_act(
            plain(x), weight, bias, running_mean, running_var, tau, eps=eps, activation=activation,
            residual=None if residual is None else plain(residual), backend=backend,
        )  # fmt: skip
        return like(y, x, positive=activation == "ReLU")
    fixed = [p for p in (weight, bias, running_mean, running_var) if p is not None]
    if _plain(backend, x, residual) or any(p.requires_grad for p in fixed):
        return reference.frozen_bn_act(
            x, weight, bias, running_mean, running_var, tau, eps=eps, activation=activation,
            residual=residual,
        )  # fmt: skip
    scale, shift = reference.frozen_affine(weight, bias, running_mean, running_var, eps)
    return library.point_act(x, residual, scale, shift, tau, activation, backend)


def add_act(
    x: Tensor,
    y: Tensor,
    tau: Tensor | None = None,
    *,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """The residual join: add, then the activation. Keeps only its output for backward."""
    _check(x, tau, activation)
    if isinstance(x, Padded):
        z = add_act(plain(x), plain(y), tau, activation=activation, backend=backend)
        clean = x.clean and isinstance(y, Padded) and y.clean and activation != "TLU"
        return like(z, x, clean=clean, positive=activation == "ReLU")
    if _plain(backend, x, y) or activation is None:
        return reference.add_act(x, y, tau, activation=activation)
    if backend == "auto" and activation == "ReLU" and x.device.type == "cpu":
        return F.relu_(x + y)  # it keeps the same, and torch's own two passes are faster
    return library.point_act(x, y, None, None, tau, activation, backend)


def act(x: Tensor, tau: Tensor | None = None, *, activation: str | None = None) -> Tensor:
    """The activation alone."""
    _check(x, tau, activation)
    if isinstance(x, Padded):
        y = reference.act(plain(x), tau, activation=activation)
        return like(
            y, x, clean=x.clean and activation != "TLU",
            positive=activation == "ReLU" or (activation is None and x.positive),
        )  # fmt: skip
    return reference.act(x, tau, activation=activation)


def check_dialect(dialect: str) -> str:
    """Return the name of a dialect of weight standardization, if it exists.

    Raises:
        NormdetError: there is none of that name.
    """
    if dialect not in _DIALECTS:
        known = listed(map(repr, _DIALECTS), "or")
        raise NormdetError(f"weight standardization dialect {dialect!r} is not {known}")
    return dialect


def standardize_weight(
    weight: Tensor,
    *,
    dialect: str = "jhu",
    eps: float | None = None,
    out_dim: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Weight Standardization (arXiv:1903.10520) over all but the output channel.

    Args:
        dialect: "jhu" (the authors, mmcv): unbiased deviation, eps (1e-5) added outside the root;
            "timm" (timm, BiT): biased variance, eps (1e-6) inside the root.
        out_dim: which dimension holds the output channels (1 in a transposed convolution).

    A filter of a single weight (a depthwise 1x1) becomes 0 in both: it is its own mean.
    """
    kind, usual = _DIALECTS[check_dialect(dialect)]
    eps = usual if eps is None else eps
    if _plain(backend, weight):
        return reference.standardize_weight(weight, dialect=dialect, eps=eps, out_dim=out_dim)
    # Every filter is an example of one group, so the weight needs no other shape.
    rows = weight if out_dim == 0 else weight.transpose(0, out_dim)
    if weight.numel() == len(rows):
        kind = "group"  # one value has no unbiased deviation
    standard = library.norm_act(
        rows, None, None, None, None, None, kind, 1, eps, None, None, backend, None
    )
    return standard if out_dim == 0 else standard.transpose(0, out_dim)


def _check(x: Tensor, tau: Tensor | None, activation: str | None) -> None:
    if activation not in (None, "ReLU", "TLU"):
        raise NormdetError(f"activation {activation!r} is not None, 'ReLU' or 'TLU'")
    if (activation == "TLU") != (tau is not None):
        raise NormdetError(
            f"activation {activation!r} came {'without' if tau is None else 'with'} a tau: "
            "'TLU' needs one and the others take none"
        )
    if x.dim() < 2:
        raise NormdetError(f"expected an input (N, C, ...), got one of shape {tuple(x.shape)}")


def check_groups(num_groups: int, channels: int) -> int:
    """The number of groups, given back.

    Raises:
        NormdetError: the channels do not divide into so many.
    """
    if num_groups < 1 or channels % num_groups:
        raise NormdetError(f"{channels} channels do not divide into {num_groups} groups")
    return num_groups


def _plain(
    backend: str,
    x: Tensor,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> bool:
    """Whether to take the reference form, which alone can broadcast or cast a residual."""
    if backend not in library.BACKENDS:
        raise NormdetError(
            f"backend {backend!r} is not one of {', '.join(map(repr, library.BACKENDS))}"
        )
    if residual is not None and (residual.dtype != (dtype or x.dtype) or residual.shape != x.shape):
        return True
    if backend != "auto":
        return backend == "reference"
    transformed = torch._C._are_functorch_transforms_active()
    return recording() or transformed or x.dtype not in library.DTYPES


def recording() -> bool:
    """Whether a graph of standard operators is being recorded, to be run without normdet."""
    exporting = torch.compiler.is_exporting() if _KNOWS_EXPORTING else False
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or exporting
