"""What the contrasts share: detectron2's own Mask R-CNN of the zoo, its data and its schedule."""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

import normdet

train = get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 270000

dataloader = get_config("common/data/coco.py").dataloader
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_3x

optimizer = get_config("common/optim.py").SGD
optimizer.params = L(normdet.get_default_optimizer_params)(weight_decay_norm=0.0)

detector = get_config("common/models/mask_rcnn_fpn.py").model
# The head of the published GN and SyncBN models.
detector.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
detector.roi_heads.box_head.fc_dims = [1024]
