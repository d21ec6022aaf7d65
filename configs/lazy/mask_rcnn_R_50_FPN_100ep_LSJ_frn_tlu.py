"""No published number: FRN+TLU from random weights by large-scale jitter, 100 epochs.

detectron2's new baselines with SyncBN by the same recipe reach box AP 44.6 and mask AP 40.3 after
100 epochs, and 47.4 and 42.5 after 400.
"""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

import normdet

_recipe = get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")
train, dataloader = _recipe.train, _recipe.dataloader
lr_multiplier, optimizer = _recipe.lr_multiplier, _recipe.optimizer
optimizer.params = L(normdet.get_default_optimizer_params)(weight_decay_norm=0.0)

_detector = _recipe.model
for _head in (_detector.roi_heads.box_head, _detector.roi_heads.mask_head):
    _head.conv_norm = "BN"  # only to mark the place
model = L(normdet.normalize)(model=_detector, norm="FRN+TLU", start="fresh")
