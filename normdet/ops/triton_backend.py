"""The backend "triton": imported when first asked for, so that normdet itself needs no Triton."""

from normdet.ops.triton_norm import norm_backward, norm_forward
from normdet.ops.triton_point import add_forward, affine_forward, point_backward

__all__ = ["add_forward", "affine_forward", "norm_backward", "norm_forward", "point_backward"]
