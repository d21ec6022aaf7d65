"""The torch operators `normdet::*`: how torch.compile, export and autocast see the fast forms.

Each has a fake form (shapes and strides) and a derivative. The work is done by a backend, a module
with `norm_forward`, `norm_backward`, `affine_forward`, `add_forward` and `point_backward`; "auto"
is resolved here, when the operator runs, so that nothing of the choice is traced.
"""

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
    "norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? tau, Tensor? learned_eps, str kind, "
    "SymInt groups, float eps, str? activation, str backend) -> (Tensor, Tensor, Tensor)"
)
_lib.define(
    "norm_act_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, "
    "Tensor? bias, Tensor? tau, str kind, SymInt groups, float eps, str? activation, "
    "bool eps_gradient, str backend) -> (Tensor, Tensor, Tensor)"
)
_lib.define(
    "affine_act(Tensor x, Tensor scale, Tensor shift, Tensor? tau, str? activation, str backend) "
    "-> Tensor"
)
_lib.define("add_act(Tensor x, Tensor y, Tensor? tau, str? activation, str backend) -> Tensor")
_lib.define(
    "point_backward(Tensor dy, Tensor y, Tensor? scale, Tensor? tau, str? activation, str backend) "
    "-> (Tensor, Tensor)"
)


def _resolve(backend: str, x: Tensor) -> ModuleType:
    if backend == "auto":
        if x.device.type == "cpu":
            return cpp if cpp.available() else eager
        has_triton = x.device.type == "cuda" and importlib.util.find_spec("triton")
        backend = "triton" if has_triton and x.dtype != torch.float64 else "eager"
    if backend == "eager":
        return eager
    if backend == "cpp":
        if not cpp.available():
            raise NormdetError("backend 'cpp' needs a C++ compiler, and none here works")
        return cpp
    try:
        from normdet.ops import triton_backend
    except ImportError as error:
        raise NormdetError(f"backend 'triton' needs the package triton: {error}") from None
    return triton_backend


def _norm_act(x, weight, bias, tau, learned_eps, kind, groups, eps, activation, backend):
    run = _resolve(backend, x).norm_forward
    return run(x, weight, bias, tau, learned_eps, kind, groups, eps, activation)


def _norm_act_backward(*inputs):
    *inputs, backend = inputs
    return _resolve(backend, inputs[1]).norm_backward(*inputs)


def _affine_act(x, scale, shift, tau, activation, backend):
    return _resolve(backend, x).affine_forward(x, scale, shift, tau, activation)


def _add_act(x, y, tau, activation, backend):
    return _resolve(backend, x).add_forward(x, y, tau, activation)


def _point_backward(dy, y, scale, tau, activation, backend):
    return _resolve(backend, y).point_backward(dy, y, scale, tau, activation)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _statistic(x: Tensor, *shape) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(shape, dtype=dtype)


def _fake_norm_act(x, weight, bias, tau, learned_eps, kind, groups, eps, activation, backend):
    rstd = _statistic(x, x.shape[0], groups)
    return _like(x), _statistic(x, 0) if kind == "rms" else torch.empty_like(rstd), rstd


def _fake_norm_act_backward(dy, x, *others):
    return _like(x), _statistic(x, 3, x.shape[1]), _statistic(x, int(others[-2]))


def _fake_point_backward(dy, y, scale, tau, activation, backend):
    return _like(y), _statistic(y, y.shape[1])


def _save_norm(ctx, inputs, output):
    x, weight, bias, tau, learned_eps, *ctx.options, ctx.backend = inputs
    _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, mean, rstd, weight, bias, tau, learned_eps)


def _differentiate_norm(ctx, dy, *_):
    none = (None,) * 10
    return none if dy is None else (*_norm_gradients(ctx, dy), *none[5:])


def _norm_gradients(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Of x, weight, bias, tau and the learned eps."""
    x, mean, rstd, weight, bias, tau, learned_eps = ctx.saved_tensors
    dx, by_channel, deps = norm_act_backward(
        dy, x, mean, rstd, weight, bias, tau, *ctx.options, learned_eps is not None, ctx.backend
    )
    if weight is None and bias is None and tau is None:
        return dx, None, None, None, _gradient(deps, learned_eps)
    dweight, dbias, dtau = by_channel.unbind()
    return (
        dx,
        _gradient(dweight, weight),
        _gradient(dbias, bias),
        _gradient(dtau, tau),
        _gradient(deps, learned_eps),
    )


def _gradient(value: Tensor, parameter: Tensor | None) -> Tensor | None:
    if parameter is None:
        return None
    alike = value.dtype is parameter.dtype and value.shape == parameter.shape
    return value if alike else value.to(parameter.dtype).view(parameter.shape)


def _save_affine(ctx, inputs, output):
    _, scale, _, tau, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(None if ctx.activation is None else output, scale, tau)


def _differentiate_affine(ctx, dy):
    """The affine is fixed: scale and shift get no gradient."""
    y, scale, tau = ctx.saved_tensors
    if ctx.activation is None:
        shape = (1, -1, *[1] * (dy.dim() - 2))
        return dy * scale.to(dy.dtype).reshape(shape), None, None, None, None, None
    dx, dtau = point_backward(dy, y, scale, tau, ctx.activation, ctx.backend)
    return dx, None, None, _gradient(dtau, tau), None, None


def _save_add(ctx, inputs, output):
    _, _, tau, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(output, tau)


def _differentiate_add(ctx, dz):
    z, tau = ctx.saved_tensors
    dx, dtau = point_backward(dz, z, None, tau, ctx.activation, ctx.backend)
    return dx, dx, _gradient(dtau, tau), None, None


def _once(ctx, *_):
    raise NormdetError(
        "the fused operators differentiate once; use backend='reference' for second derivatives"
    )


for _name, _run, _fake, _save, _differentiate in (
    ("norm_act", _norm_act, _fake_norm_act, _save_norm, _differentiate_norm),
    ("norm_act_backward", _norm_act_backward, _fake_norm_act_backward, None, _once),
    ("affine_act", _affine_act, lambda x, *_: _like(x), _save_affine, _differentiate_affine),
    ("add_act", _add_act, lambda x, *_: _like(x), _save_add, _differentiate_add),
    ("point_backward", _point_backward, _fake_point_backward, None, _once),
):
    _lib.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"normdet::{_name}", _fake, lib=_lib)
    torch.library.register_autograd(
        f"normdet::{_name}", _differentiate, setup_context=_save, lib=_lib
    )


def _shortcut(name, run, save=None, differentiate=None):
    """The operator, called without torch's dispatcher if nothing traces or transforms.

    That spares two thirds of the time a call takes before its kernel runs, which a detector with
    a hundred norms would feel. Whatever traces or transforms gets the operator itself.
    """

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = run(*inputs)
            save(ctx, inputs, output)
            return output

        backward = staticmethod(differentiate)

    operator = getattr(torch.ops.normdet, name)

    def call(*inputs):
        if _watched(inputs[0]):
            return operator(*inputs)
        if not torch.is_grad_enabled():
            return run(*inputs)
        # Derivatives have no derivative: the operator says so where one is asked for.
        return operator(*inputs) if save is None else Direct.apply(*inputs)

    return call


def _watched(x: Tensor) -> bool:
    return (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
    )


class _NormAct(torch.autograd.Function):
    """The operator `norm_act` and its derivative; of few objects, which small maps feel."""

    @staticmethod
    def forward(ctx, x, weight, bias, tau, learned_eps, options):
        y, mean, rstd = _norm_act(x, weight, bias, tau, learned_eps, *options)
        *ctx.options, ctx.backend = options
        ctx.save_for_backward(x, mean, rstd, weight, bias, tau, learned_eps)
        return y

    @staticmethod
    def backward(ctx, dy):
        return *_norm_gradients(ctx, dy), None


def _norm_again(node) -> Tensor:
    """The output, from what its node keeps: the same kernel on the same numbers."""
    x, _, _, *parameters = node.saved_tensors
    with torch.no_grad():
        return _norm_act(x, *parameters, *node.options, node.backend)[0]


def norm_act(x, weight, bias, tau, learned_eps, *options) -> Tensor:
    """The output of the operator `norm_act`; see :func:`_shortcut`."""
    if _watched(x):
        return torch.ops.normdet.norm_act(x, weight, bias, tau, learned_eps, *options)[0]
    if not torch.is_grad_enabled():
        return _norm_act(x, weight, bias, tau, learned_eps, *options)[0]
    y = _NormAct.apply(x, weight, bias, tau, learned_eps, options)
    return recompute.made(y, _norm_again)


norm_act_backward = _shortcut("norm_act_backward", _norm_act_backward)
affine_act = _shortcut("affine_act", _affine_act, _save_affine, _differentiate_affine)
add_act = _shortcut("add_act", _add_act, _save_add, _differentiate_add)
point_backward = _shortcut("point_backward", _point_backward)
