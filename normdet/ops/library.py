"""The torch operators `normdet::*`: how torch.compile, export and autocast see the fast forms.

Each has a fake form (shapes and strides) and a derivative. The work is done by a backend, a module
with `norm_forward`, `norm_backward`, `point_forward` and `point_backward`; "auto" is resolved here,
when the operator runs, so that the choice is not traced. For a missing output a backend returns
None; an operator cannot, and returns an empty tensor.
"""

import functools
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from normdet.errors import NormdetError
from normdet.ops import cpp, eager, recompute
from normdet.ops.layout import memory_format

BACKENDS = ("auto", "reference", "eager", "cpp", "triton")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_lib = torch.library.Library("normdet", "DEF")
_lib.define(
    "norm_act(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? tau, "
    "Tensor? learned_eps, str kind, SymInt groups, float eps, str? activation, ScalarType? dtype, "
    "str backend, Tensor? extents=None) -> (Tensor, Tensor, Tensor)"
)
_lib.define(
    "norm_act_backward(Tensor dy, Tensor x, Tensor? out, Tensor? mean, Tensor rstd, "
    "Tensor? weight, Tensor? bias, Tensor? tau, str kind, SymInt groups, float eps, "
    "str? activation, bool eps_gradient, str backend, Tensor? extents=None) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_lib.define(
    "point_act(Tensor x, Tensor? residual, Tensor? scale, Tensor? shift, Tensor? tau, "
    "str? activation, str backend) -> Tensor"
)
_lib.define(
    "point_act_backward(Tensor dy, Tensor y, Tensor? scale, bool joined, Tensor? tau, str backend) "
    "-> (Tensor, Tensor, Tensor)"
)


@functools.cache
def _triton() -> ModuleType | None:
    """The backend "triton", or None without Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    from normdet.ops import triton_backend

    return triton_backend


def resolve(backend: str, x: Tensor) -> ModuleType:
    if backend == "auto":
        if x.device.type == "cpu":
            return cpp if cpp.available() else eager
        fits = x.device.type == "cuda" and x.dtype != torch.float64
        triton = _triton() if fits else None
        return triton if triton is not None and triton.works(x.get_device()) else eager
    if backend == "eager":
        return eager
    if backend == "cpp":
        if not cpp.available():
            raise NormdetError("backend 'cpp' needs a C++ compiler, and none here works")
        return cpp
    try:
        triton = _triton()
    except ImportError as error:
        raise NormdetError(f"backend 'triton' needs the package triton: {error}") from None
    if triton is None:
        raise NormdetError("backend 'triton' needs the package triton, which is not installed")
    return triton


def _norm_act(
    x, residual, weight, bias, tau, learned_eps, kind, groups, eps, activation, dtype, backend,
    extents=None,
):  # fmt: skip
    inputs = (x, residual, weight, bias, tau, learned_eps, kind, groups, eps, activation, dtype)
    if extents is None:
        return resolve(backend, x).norm_forward(*inputs)
    return _that_takes_extents(backend, x).norm_forward(*inputs, extents)


def _norm_act_backward(
    dy, x, out, mean, rstd, weight, bias, tau, kind, groups, eps, activation, eps_gradient, backend,
    extents=None,
):  # fmt: skip
    mean = None if kind == "rms" else mean  # the operator's is empty
    inputs = (
        dy, x, out, mean, rstd, weight, bias, tau, kind, groups, eps, activation, eps_gradient
    )  # fmt: skip
    if extents is None:
        return resolve(backend, x).norm_backward(*inputs)
    return _that_takes_extents(backend, x).norm_backward(*inputs, extents)


def _that_takes_extents(backend: str, x: Tensor) -> ModuleType:
    """The backend, or "eager" in place of "triton", whose kernels take whole maps alone."""
    found = resolve(backend, x)
    return found if found is cpp else eager


def _point_act(x, residual, scale, shift, tau, activation, backend):
    return resolve(backend, x).point_forward(x, residual, scale, shift, tau, activation)


def _point_act_backward(dy, y, scale, joined, tau, backend):
    return resolve(backend, y).point_backward(dy, y, scale, joined, tau)


def _full(run):
    """`run` with an empty tensor in place of every None."""

    def filled(x, *inputs):
        outputs = run(x, *inputs)
        if isinstance(outputs, Tensor):
            return outputs
        return tuple(_output(x, out) for out in outputs)

    return filled


def _output(x: Tensor, out: Tensor | tuple | None) -> Tensor:
    if isinstance(out, tuple):  # gradients by channel
        zeros = _statistic(x, x.shape[1]).zero_()
        return torch.stack([zeros if g is None else g.flatten() for g in out])
    return _statistic(x, 0) if out is None else out


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=memory_format(x))


def _statistic(x: Tensor, *shape) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(shape, dtype=dtype)


def _fake_norm_act(
    x, residual, weight, bias, tau, learned_eps, kind, groups, eps, activation, dtype, backend,
    extents=None,
):  # fmt: skip
    rstd = _statistic(x, x.shape[0], groups)
    return _like(x, dtype), _statistic(x, 0) if kind == "rms" else torch.empty_like(rstd), rstd


def _fake_norm_act_backward(
    dy, x, out, mean, rstd, weight, bias, tau, kind, groups, eps, activation, eps_gradient, backend,
    extents=None,
):  # fmt: skip
    trained = any(p is not None for p in (weight, bias, tau)) or eps_gradient
    return (
        _like(x),
        _statistic(x, 0) if out is None else _like(dy),
        _statistic(x, 3, x.shape[1]) if trained else _statistic(x, 0),
        _statistic(x, 1 if eps_gradient else 0),
    )


def _fake_point_act(x, residual, scale, shift, tau, activation, backend):
    return _like(x)


def _fake_point_act_backward(dy, y, scale, joined, tau, backend):
    dsum = _like(y) if joined and scale is not None else _statistic(y, 0)
    return _like(y), dsum, _statistic(y, 0 if tau is None else y.shape[1])


def _keep_norm(ctx, inputs, output):
    x, residual, weight, bias, tau, learned_eps, *ctx.options = inputs
    y, mean, rstd = output
    out = None if residual is None else y
    ctx.save_for_backward(x, out, mean, rstd, weight, bias, tau, learned_eps)


def _save_norm(ctx, inputs, output):
    """Like :func:`_keep_norm`, for the operator, whose statistics are outputs too."""
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    _keep_norm(ctx, inputs, output)


def _differentiate_norm(ctx, dy, *_):
    """The gradients of x, residual, weight, bias, tau and the learned eps."""
    if dy is None:
        return (None,) * 13
    x, out, mean, rstd, weight, bias, tau, learned_eps = ctx.saved_tensors
    kind, groups, eps, activation, _, backend, extents = ctx.options
    dx, dsum, by_channel, deps = norm_act_backward(
        dy, x, out, mean, rstd, weight, bias, tau, kind, groups, eps, activation,
        learned_eps is not None, backend, extents,
    )  # fmt: skip
    dweight = dbias = dtau = None
    if weight is not None or bias is not None or tau is not None:
        dweight, dbias, dtau = by_channel  # a tensor or a tuple
    return (
        dx,
        None if out is None else dsum,
        None if weight is None else _gradient(dweight, weight),
        None if bias is None else _gradient(dbias, bias),
        None if tau is None else _gradient(dtau, tau),
        None if learned_eps is None else _gradient(deps, learned_eps),
        None, None, None, None, None, None, None,
    )  # fmt: skip


def _gradient(value: Tensor, parameter: Tensor) -> Tensor:
    alike = value.dtype is parameter.dtype and value.shape == parameter.shape
    return value if alike else value.to(parameter.dtype).view(parameter.shape)


def _save_point(ctx, inputs, output):
    _, residual, scale, _, tau, ctx.activation, ctx.backend = inputs
    ctx.joined = residual is not None
    ctx.save_for_backward(None if ctx.activation is None else output, scale, tau)


def _differentiate_point(ctx, dy):
    """The affine is fixed: scale and shift get no gradient."""
    y, scale, tau = ctx.saved_tensors
    dtau = None
    if ctx.activation is not None:
        dx, dsum, dtau = point_act_backward(dy, y, scale, ctx.joined, tau, ctx.backend)
        dsum = dx if scale is None else dsum
    else:
        dsum = dy
        shape = (1, -1, *[1] * (dy.dim() - 2))
        dx = dy if scale is None else dy * scale.to(dy.dtype).reshape(shape)
    dtau = None if tau is None else _gradient(dtau, tau)
    return dx, dsum if ctx.joined else None, None, None, dtau, None, None


def _once(ctx, *_):
    raise NormdetError(
        "the fused operators differentiate once; use backend='reference' for second derivatives"
    )


for _name, _run, _fake, _save, _differentiate in (
    ("norm_act", _norm_act, _fake_norm_act, _save_norm, _differentiate_norm),
    ("norm_act_backward", _norm_act_backward, _fake_norm_act_backward, None, _once),
    ("point_act", _point_act, _fake_point_act, _save_point, _differentiate_point),
    ("point_act_backward", _point_act_backward, _fake_point_act_backward, None, _once),
):
    _lib.impl(_name, _full(_run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"normdet::{_name}", _fake, lib=_lib)
    torch.library.register_autograd(
        f"normdet::{_name}", _differentiate, setup_context=_save, lib=_lib
    )


def _shortcut(name, run, save=None, differentiate=None, again=None):
    """The operator, called without torch's dispatcher if nothing traces or transforms.

    That saves two thirds of the time before a kernel runs, which matters in a detector with a
    hundred norms. Tracing and transforms get the operator itself.

    Args:
        save: keeps tensors for the derivative; None for a derivative, which has none itself.
        differentiate: the derivative.
        again: computes the first output again from its node (:mod:`normdet.ops.recompute`).

    Returns:
        A function of the operator's inputs. One with a derivative gives its first output alone.
    """

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = run(*inputs)
            save(ctx, inputs, output)
            return output if isinstance(output, Tensor) else output[0]

        backward = staticmethod(differentiate)

    operator = getattr(torch.ops.normdet, name)
    # Past a look at every input for wrappers of transforms, which `_watched` has found before.
    apply = super(torch.autograd.Function, Direct).apply

    def first(output):
        return output if save is None or isinstance(output, Tensor) else output[0]

    def call(*inputs):
        if _watched(inputs[0]):
            return first(operator(*inputs))
        if not torch.is_grad_enabled():
            return first(run(*inputs))
        # Derivatives have no derivative; the operator raises if one is asked for.
        if save is None:
            return operator(*inputs)
        y = apply(*inputs)
        return y if again is None else recompute.made(y, again)

    return call


def _watched(x: Tensor) -> bool:
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def _norm_again(node) -> Tensor:
    """The output, computed from the node's tensors by the same kernel on the same numbers."""
    x, out, _, _, *parameters = node.saved_tensors
    if out is not None:  # it is kept anyway, to find clamped elements
        return out
    with torch.no_grad():
        return _norm_act(x, None, *parameters, *node.options)[0]


norm_act_backward = _shortcut("norm_act_backward", _norm_act_backward)
point_act_backward = _shortcut("point_act_backward", _point_act_backward)
norm_act = _shortcut("norm_act", _norm_act, _keep_norm, _differentiate_norm, _norm_again)
point_act = _shortcut("point_act", _point_act, _save_point, _differentiate_point)
