"""Images of different sizes in one tensor, which knows the images' extents in it and in its maps.

detectron2 pads the images of a batch with zeros to the largest. A :class:`Padded` is that tensor
with the images' sizes. A map computed from it by a function with a rule below is a :class:`Padded`
too; other functions return ordinary tensors. Only the tensors hold sizes, so threads, nested
models, recomputation in backward and batches without padding need no special care.

Convolutions and pooling see zeros outside an image, as at the end of a tensor. So an image's map is
the same as alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from normdet.errors import NormdetError
from normdet.ops.layout import fill_outside, memory_format

Size = tuple[int, int]


class Extents:
    """The images' extents in a padded batch and in every map of it.

    Layers of stride 2 make `ceil(h / 2)` rows of `h` (7x7 padded by 3, 3x3 padded by 1, 1x1;
    convolutions and pooling), both for an image's height `h` and for the tensor's. So a map's size
    shows how often it was halved, and thus the extents in it.

    Args:
        sizes: height and width of each image.
        padded: height and width of the tensor.

    Attributes:
        whole: whether every image fills the tensor, and so every map.
    """

    whole: bool

    def __init__(self, sizes: Sequence[Size], padded: Size):
        self._padded = tuple(padded)
        self._count = len(sizes)
        self.whole = all(tuple(size) == self._padded for size in sizes)
        self._known: dict[Size, tuple[Size, ...]] = {self._padded: tuple(map(tuple, sizes))}

    def at(self, size: Size) -> tuple[Size, ...]:
        """The height and width of each image in a map of this size.

        Raises:
            NormdetError: no number of halvings of the batch gives this size.
        """
        size = tuple(size)
        if self.whole:
            return (size,) * self._count
        if size not in self._known:
            self._known[size] = self._halved(size)
        return self._known[size]

    def _halved(self, size: Size) -> tuple[Size, ...]:
        now, sizes = self._padded, self._known[self._padded]
        while now != size:
            if max(now) <= 1:
                raise NormdetError(
                    f"a map of {size[0]}x{size[1]} is no halving of a batch of "
                    f"{self._padded[0]}x{self._padded[1]}: it does not tell where its images end; "
                    "this network needs MODEL.NORMDET.IGNORE_PADDING False"
                )
            now = (_half(now[0]), _half(now[1]))
            sizes = tuple((_half(h), _half(w)) for h, w in sizes)
        return sizes


def _half(length: int) -> int:
    return -(-length // 2)


class Padded(Tensor):
    """A batch of images, or a map of it, `(N, C, H, W)`, that knows where each image ends.

    Attributes:
        extents: the batch's.
        clean: whether all is zero outside the images.
        positive: whether no value is below zero.
        origin: its ordinary tensor.
    """

    extents: Extents
    clean: bool
    positive: bool
    origin: Tensor

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        rule = _RULES.get(getattr(func, "__name__", ""), _forget)
        return rule(func, args, kwargs or {})


def padded(x: Tensor, extents: Extents, *, clean: bool = False, positive: bool = False) -> Padded:
    """`x` `(N, C, H, W)` as a map of a batch with these extents; the same memory."""
    x = plain(x)
    with torch._C.DisableTorchFunctionSubclass():
        y = x.as_subclass(Padded)
    y.extents, y.clean, y.positive, y.origin = extents, clean, positive, x
    return y


def plain(x: Tensor) -> Tensor:
    """`x` as an ordinary tensor; the same memory."""
    return x.origin if isinstance(x, Padded) else x


def sizes(x: Padded) -> tuple[Size, ...]:
    """The height and width of each image in a map."""
    return x.extents.at(x.shape[-2:])


def like(y: Tensor, x: Padded, **known: bool) -> Padded:
    """`y` as a map of the batch of `x`."""
    return padded(y, x.extents, **known)


def cleaned(x: Tensor) -> Tensor:
    """`x` with zeros outside its images; itself if it has, or is no padded map."""
    if not isinstance(x, Padded) or x.clean or x.extents.whole:
        return x
    return like(_filled(plain(x), sizes(x), 0.0), x, clean=True, positive=x.positive)


def crops(x: Padded) -> list[Tensor]:
    """Each image's part of a map, `(1, C, h, w)`: views."""
    whole = plain(x)
    return [whole[n : n + 1, :, :h, :w] for n, (h, w) in enumerate(sizes(x))]


def parts(x: Tensor) -> list[Tensor]:
    """What of a tensor counts: each image's part of a padded map, or an ordinary tensor itself."""
    return crops(x) if isinstance(x, Padded) else [x]


def pasted(each: Sequence[Tensor], x: Padded, *, positive: bool = False) -> Padded:
    """The map of the batch of `x` from each image's part, zeros outside."""
    height, width = x.shape[-2:]
    wide = [F.pad(p, (0, width - p.shape[3], 0, height - p.shape[2])) for p in each]
    whole = torch.cat(wide).contiguous(memory_format=memory_format(plain(x)))
    return like(whole, x, clean=True, positive=positive)


def apart(run: Callable[..., Tensor], x: Padded, *others: Tensor, positive: bool = False) -> Padded:
    """`run(x, *others)` on each image by itself; `others` are maps of the same size."""
    cut = [crops(x), *(crops(like(plain(other), x)) for other in others)]
    done = [run(*part) if part[0].numel() else part[0] for part in zip(*cut, strict=True)]
    return pasted(done, x, positive=positive)


def pooled(run: Callable[[Tensor], Tensor], x: Padded, *, positive: bool = False) -> Padded:
    """`run` on all pixels inside images as one row `(1, C, 1, M)`; other pixels become zero."""
    cut = crops(x)
    row = run(torch.cat([part.flatten(2) for part in cut], 2).unsqueeze(2)).squeeze(2)
    rows = row.split([part[0, 0].numel() for part in cut], 2)
    return pasted(
        [row.reshape(part.shape) for row, part in zip(rows, cut, strict=True)], x,
        positive=positive,
    )  # fmt: skip


def with_edges(x: Tensor) -> Tensor:
    """An ordinary tensor, each image's last row and column repeated once outside it.

    A function that samples a map up to an image's end, such as RoIAlign, then finds the same values
    as at the end of a tensor.
    """
    return _Edged.apply(plain(x), sizes(x)) if isinstance(x, Padded) else x


class _Filled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, sizes, value):
        ctx.sizes = sizes
        return fill_outside(x.clone(), sizes, value)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return fill_outside(grad.clone(), ctx.sizes, 0.0), None, None


_filled = _Filled.apply


class _Edged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, sizes):
        ctx.sizes = sizes
        x = x.clone()
        for image, (h, w) in zip(x, sizes, strict=True):
            if h and w:
                image[:, :h, w : w + 1] = image[:, :h, w - 1 : w]
                image[:, h : h + 1, : w + 1] = image[:, h - 1 : h, : w + 1]
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad = grad.clone()
        for image, (h, w) in zip(grad, ctx.sizes, strict=True):
            if h and w:  # an image that ends with the tensor has no pixels behind it
                image[:, h - 1 : h, : w + 1] += image[:, h : h + 1, : w + 1].sum(1, keepdim=True)
                image[:, :h, w - 1 : w] += image[:, :h, w : w + 1].sum(2, keepdim=True)
        return fill_outside(grad, ctx.sizes, 0.0), None


# ---- rules of functions on padded maps -----------------------------------------------------------


def _run(func: Callable, args: tuple, kwargs: dict) -> Any:
    """Of the ordinary tensors."""
    return func(*map(_ordinary, args), **{name: _ordinary(v) for name, v in kwargs.items()})


def _ordinary(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_ordinary, value))
    return value.origin if isinstance(value, Padded) else value


def _forget(func: Callable, args: tuple, kwargs: dict) -> Any:
    """A function without a rule returns ordinary tensors."""
    return _run(func, args, kwargs)


def _convolve(func, args, kwargs):
    x, weight = args[0], args[1]
    if max(weight.shape[2:]) > 1:
        x = cleaned(x)
    out = _run(func, (x, *args[1:]), kwargs)
    return like(out, x) if isinstance(x, Padded) else out


def _pool(func, args, kwargs):
    """Values outside an image are never the largest, as at the end of a tensor."""
    x, *rest = args
    if kwargs.get("return_indices"):
        return _run(func, args, kwargs)
    kernel = rest[0] if rest else kwargs["kernel_size"]
    known = {"clean": x.clean, "positive": x.positive}
    fills = x.extents.whole or (x.clean and x.positive)
    if kernel not in (1, (1, 1), [1, 1]) and not fills:
        x, known = like(_filled(plain(x), sizes(x), float("-inf")), x), {}
    y = like(_run(func, (x, *rest), kwargs), x, **known)
    return y if known else cleaned(y)


def _upsample(func, args, kwargs):
    out = _run(func, args, kwargs)
    mode = kwargs.get("mode", args[3] if len(args) > 3 else "nearest")
    return like(out, args[0]) if mode == "nearest" else out


def _elementwise(keeps_zero: bool, keeps_sign: bool = False, positive: bool = False):
    """The rule of a function whose result at a place depends only on its inputs there."""

    def rule(func, args, kwargs):
        first = next(arg for arg in args if isinstance(arg, Padded))
        tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.dim() == 4]
        alike = all(isinstance(arg, Padded) for arg in tensors)
        out = _run(func, args, kwargs)
        if out.shape != first.shape or not all(t.shape[0] == out.shape[0] for t in tensors):
            return out
        known = {
            "clean": keeps_zero and alike and all(t.clean for t in tensors),
            "positive": positive or (keeps_sign and alike and all(t.positive for t in tensors)),
        }
        if out is not first.origin:
            return like(out, first, **known)
        first.clean, first.positive = known["clean"], known["positive"]  # changed in place
        return first

    return rule


_same = _elementwise(keeps_zero=True, keeps_sign=True)
_NAMED: dict[str, Callable] = {
    **dict.fromkeys(("conv2d", "conv_transpose2d", "deform_conv2d"), _convolve),
    "max_pool2d": _pool,
    "interpolate": _upsample,
    **dict.fromkeys(("add", "iadd"), _same),
    **dict.fromkeys(
        ("clone", "contiguous", "detach", "to", "float", "double", "half", "bfloat16", "dropout"),
        _same,
    ),
    "relu": _elementwise(keeps_zero=True, positive=True),
    **dict.fromkeys(
        ("mul", "imul", "rmul", "div", "truediv", "itruediv", "silu", "gelu", "hardswish",
         "leaky_relu"),
        _elementwise(keeps_zero=True),
    ),
    **dict.fromkeys(("sub", "isub", "radd", "sigmoid", "batch_norm"), _elementwise(False)),
}  # fmt: skip
# A function is also known as a method, in place and as an operator: `add`, `add_`, `__add__`.
_RULES = {form: rule for name, rule in _NAMED.items() for form in (name, f"{name}_", f"__{name}__")}
