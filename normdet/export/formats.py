"""The formats: each writes a file, and opens it again for a comparison with the model."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import NormdetError
from .wrap import BACKBONE, Wrapped

OPSET = 18
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
    if wrapped.part != BACKBONE:
        raise NormdetError(
            "torch.export cannot record a whole detector: detectron2's inference branches on what "
            "is in tensors (find_top_rpn_proposals asks `if not valid_mask.all()`, Boxes whether "
            "it has any); use --part backbone, or --format torchscript or onnx"
        )
    shapes = (_dims(wrapped),) if dynamic else None
    inputs = (_twice(example, dynamic),)
    program = torch.export.export(wrapped.module, inputs, dynamic_shapes=shapes)
    torch.export.save(program, str(path))
    return "torch.export"


def _run_pt2(wrapped: Wrapped, path: Path) -> Run:
    loaded = torch.export.load(str(path)).module()
    return lambda x: tuple(loaded(x))


def _dims(wrapped: Wrapped) -> dict[int, object]:
    dims: dict[int, object] = {}
    for index, name in wrapped.dynamic().items():
        dim = torch.export.Dim(name, min=1, max=256)
        dims[index] = wrapped.step * dim if name != "batch" else dim
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
