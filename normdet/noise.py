"""Notices of other packages at start that no user can act on, and how they are kept quiet."""

import logging
import re
import warnings

# How the notices begin.
NOISE = (
    ("`torch.jit.script", FutureWarning),
    ("`torch.jit.script", DeprecationWarning),
    ("`torch.cuda.amp.", FutureWarning),
    ("`broadcast_buffers` is deprecated", FutureWarning),
    ("torch.meshgrid", UserWarning),
    ("pkg_resources is deprecated", UserWarning),
    ("pkg_resources is deprecated", DeprecationWarning),
    ("The given NumPy array is not writable", UserWarning),  # masks, which are only read
)
# Modules of torch that log a warning on being imported, or called, by detectron2.
NOISY_MODULES = ("torch.utils.cpp_extension", "torch.fx._symbolic_trace")


def _is_news(record: logging.LogRecord) -> bool:
    return "is_fx_tracing will return" not in str(record.msg)


def keep_quiet() -> None:
    """Silence the notices in this process; a user's own rules come first. Idempotent."""
    for prefix, category in NOISE:
        warnings.filterwarnings("ignore", re.escape(prefix), category, append=True)
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_is_news)
