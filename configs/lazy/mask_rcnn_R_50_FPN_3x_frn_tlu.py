"""No published number: what FRN+TLU reaches where GN reaches box AP 42.6, mask AP 38.6."""

from detectron2.config import LazyCall as L

import normdet

from .base import dataloader, detector, lr_multiplier, optimizer, train  # noqa: F401

model = L(normdet.normalize)(model=detector, norm="FRN+TLU")
