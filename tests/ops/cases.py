"""The operators under test as functions of a list of tensors, and how far a result is off."""

import torch

from normdet import ops

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def inputs(shape, dtype, *, last=False, seed=0, activation="TLU"):
    """`x`, weight, bias and tau (None unless TLU), all of them trained."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype)
    if last:
        x = x.contiguous(memory_format=CHANNELS_LAST[x.dim()])
    parameters = [torch.randn(shape[1], generator=generator) * scale for scale in (1, 0.5, 0.3)]
    if activation != "TLU":
        parameters[2] = None
    return [x, *parameters]


def frn(activation):
    def call(t, backend, **more):
        return ops.frn_tlu(*t, eps=1e-6, activation=activation, backend=backend, **more)

    return call


def group_rms(groups, activation):
    def call(t, backend, **more):
        options = {"eps": 1e-6, "num_groups": groups, "activation": activation}
        return ops.frn_tlu(*t, **options, backend=backend, **more)

    return call


def frn_learned(activation):
    def call(t, backend):
        return ops.frn_tlu(*t[:-1], eps=t[-1], activation=activation, backend=backend)

    return call


def group_norm(groups, activation):
    def call(t, backend, **more):
        x, *rest = t
        return ops.group_norm_act(
            x, groups, *rest, eps=1e-5, activation=activation, backend=backend, **more
        )

    return call


def frozen(activation):
    def call(t, backend, **more):
        x, weight, bias, tau = t
        fixed = (weight.detach(), bias.detach(), bias.detach(), weight.detach().square() + 0.1)
        options = {"eps": 1e-5, "activation": activation, "backend": backend, **more}
        return ops.frozen_bn_act(x, *fixed, tau, **options)

    return call


def joined(call):
    """A norm's call with a residual, which has a gradient too."""

    def joined_call(t, backend):
        x, *rest, residual = t
        return call([x, *rest], backend, residual=residual)

    return joined_call


def join(activation):
    def call(t, backend):
        x, _, _, tau = t
        return ops.add_act(x, x.flip(0) * 0.5, tau, activation=activation, backend=backend)

    return call


def run(call, tensors, backend, dy, dtype=None):
    """Output and gradients (None where there is none), the tensors taken as `dtype`."""
    leaves = [
        None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors
    ]
    y = call(leaves, backend)
    y.backward(dy.to(y.dtype).expand(y.shape))
    return [y.detach(), *(None if t is None else t.grad for t in leaves)]


def assert_as_good(call, tensors, backend, dy):
    """Against float64, `backend` errs at most twice as much as plain torch in the same dtype.

    Errors are RMS; the rounding of the last bits of fp32 is granted, relative to the largest
    element or, in a sum over the tensor, to the sum of what is added.
    """
    dy = dy.to(tensors[0].dtype)
    exact = run(call, tensors, "reference", dy, torch.float64)
    plain = run(call, tensors, "reference", dy)
    ours = run(call, tensors, backend, dy)
    terms = dy.double().norm() * tensors[0].double().norm()
    for index, (e, p, o) in enumerate(zip(exact, plain, ours, strict=True)):
        if e is None:
            assert o is None
            continue
        assert (o.shape, o.dtype) == (p.shape, p.dtype)
        if not e.numel():
            continue
        size = e.abs().max() if index < 2 else terms / e.numel() ** 0.5
        rms = [(v.double() - e).square().mean().sqrt().item() for v in (p, o)]
        assert rms[1] <= 2 * rms[0] + 1e-6 * size.item(), f"result {index}: {rms}"
