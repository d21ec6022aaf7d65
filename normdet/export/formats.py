"""The formats: each writes a file, and opens it again for a comparison with the model."""

import contextlib
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import NormdetError
from .record import recordable
from .wrap import BACKBONE, DETECTOR, Wrapped

OPSET = 18
LARGEST = 8192  # pixels of a side of an image in torch.export's file of a detector
Run = Callable[[Tensor], tuple[Tensor, ...]]


def export(wrapped: Wrapped, image: Tensor, path: Path, kind: str, *, dynamic: bool = True) -> str:
    """Write a model as one of :data:`FORMATS`.

    Args:
        wrapped: a detector or backbone that was made deployable.
        image: an example, `(C, H, W)`.
        path: the file to write.
        kind: the format.
        dynamic: let the sizes of images change; else they are the example's.

    Returns:
        How it was made, for the model card.

    Raises:
        NormdetError: the format needs a package that is not installed, or cannot hold the model.
    """
    example = wrapped.example(image)
    with warnings.catch_warnings(), torch.no_grad(), _quiet_logs():
        warnings.simplefilter("ignore")
        return FORMATS[kind][0](wrapped, example, path, dynamic)


@contextlib.contextmanager
def _quiet_logs():
    """Silence the exporters, which log every operator they look up."""
    names = ("torch.onnx", "torch.export", "onnxscript", "torch.fx", "torch._dynamo")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _torchscript(wrapped: Wrapped, example: Tensor, path: Path, dynamic: bool) -> str:
    traced = torch.jit.trace(wrapped.module, (example,), check_trace=False)
    traced.save(str(path))
    return "torch.jit.trace"


def _run_torchscript(wrapped: Wrapped, path: Path) -> Run:
    import torchvision  # noqa: F401  (its operators)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = torch.jit.load(str(path))
    return lambda x: tuple(loaded(x))


def _pt2(wrapped: Wrapped, example: Tensor, path: Path, dynamic: bool) -> str:
    if wrapped.part == BACKBONE:
        shapes = (_dims(wrapped),) if dynamic else None
        inputs = (_twice(example, dynamic),)
        program = torch.export.export(wrapped.module, inputs, dynamic_shapes=shapes)
    else:
        program = _record_detector(wrapped, example, dynamic)
    torch.export.save(program, str(path))
    sides = f", sides of {wrapped.least} to {LARGEST} pixels"
    return "torch.export" + (sides if dynamic and wrapped.part == DETECTOR else "")


def _record_detector(wrapped: Wrapped, example: Tensor, dynamic: bool):
    """A whole detector, whose numbers of boxes depend on what is in the image."""
    late = "prefer_deferred_runtime_asserts_over_guards"
    if late not in inspect.signature(torch.export.export).parameters:
        raise NormdetError(
            f"torch {torch.__version__} cannot record a whole detector, whose numbers of boxes "
            "depend on the image (torch 2.14 can): use --part backbone, or --format torchscript"
        )
    if "pred_keypoints" in wrapped.outputs:
        raise NormdetError(
            "torch.export cannot record keypoints: each map is resized to its box, whose size "
            "depends on the image; use --part backbone, or --format torchscript or onnx"
        )
    if dynamic and min(example.shape[1:]) < wrapped.least:
        raise NormdetError(
            f"images of {example.shape[1]} x {example.shape[2]} pixels leave one row in the "
            f"coarsest map: give one of at least {wrapped.least}, or --fixed-size"
        )
    if dynamic:
        # A map of one row would be recorded as having one row always, and torch's solver of
        # guards fails where padding is needed.
        step = wrapped.strides
        size = [max(-(-side // step), 2 * (wrapped.least // step) + 2) * step
                for side in example.shape[1:]]  # fmt: skip
        example = F.interpolate(example[None], size=size)[0]
    with recordable():
        return torch.export.export(
            wrapped.module, (example,), strict=False, **{late: True},
            dynamic_shapes=((_dims(wrapped),),) if dynamic else None,
        )  # fmt: skip


def _run_pt2(wrapped: Wrapped, path: Path) -> Run:
    import torchvision  # noqa: F401  (its operators)

    loaded = torch.export.load(str(path)).module()
    return lambda x: tuple(loaded(x))


def _dims(wrapped: Wrapped) -> dict[int, object]:
    dims: dict[int, object] = {}
    for index, name in wrapped.dynamic().items():
        if wrapped.part == BACKBONE:
            dim = torch.export.Dim(name, min=1, max=256)
            dims[index] = wrapped.step * dim if name != "batch" else dim
        else:
            dims[index] = torch.export.Dim(name, min=wrapped.least, max=LARGEST)
    return dims


def _twice(example: Tensor, dynamic: bool) -> Tensor:
    """Repeat the example, because torch.export takes a batch of one for a constant."""
    return torch.cat([example, example]) if dynamic and len(example) == 1 else example


def _onnx(wrapped: Wrapped, example: Tensor, path: Path, dynamic: bool) -> str:
    """A backbone by torch's default exporter, a detector by the one that traces."""
    _need("onnx", "onnxscript")
    if wrapped.part == BACKBONE:
        torch.onnx.export(
            wrapped.module, (_twice(example, dynamic),), str(path), dynamo=True, verbose=False,
            input_names=list(wrapped.inputs), output_names=list(wrapped.outputs),
            dynamic_shapes=(_dims(wrapped),) if dynamic else None, external_data=False,
            opset_version=OPSET,
        )  # fmt: skip
        return f"torch.onnx.export(dynamo=True), opset {OPSET}"
    from .keypoints import onnx_keypoints

    with onnx_keypoints():
        torch.onnx.export(
            wrapped.module, (example,), str(path), dynamo=False, opset_version=OPSET,
            input_names=list(wrapped.inputs), output_names=[*wrapped.outputs],
            dynamic_axes={wrapped.inputs[0]: wrapped.dynamic()} if dynamic else None,
        )  # fmt: skip
    return f"torch.onnx.export(dynamo=False), opset {OPSET}"


def _run_onnx(wrapped: Wrapped, path: Path) -> Run:
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda x: tuple(torch.from_numpy(y) for y in session.run(None, {name: x.numpy()}))


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise NormdetError(
            f"ONNX needs {', '.join(missing)}, not installed here: pip install 'normdet[export]'"
        )


# The function that writes a format, and the function that opens a file of it.
FORMATS: dict[str, tuple[Callable[..., str], Callable[[Wrapped, Path], Run]]] = {
    "onnx": (_onnx, _run_onnx),
    "torchscript": (_torchscript, _run_torchscript),
    "pt2": (_pt2, _run_pt2),
}
