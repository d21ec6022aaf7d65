"""Builders of ours are registered by import, in any order, and cheaply."""

import subprocess
import sys

import pytest

from normdet.keys import BUILDERS, normdet_name


def test_every_builder_of_ours_is_registered():
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        ROI_HEADS_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        roi_heads,
    )
    from detectron2.modeling.proposal_generator import (
        PROPOSAL_GENERATOR_REGISTRY,
        RPN_HEAD_REGISTRY,
    )

    registries = {
        "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
        "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
        "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
        "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
        "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
        "MODEL.ROI_BOX_HEAD.NAME": roi_heads.ROI_BOX_HEAD_REGISTRY,
        "MODEL.ROI_MASK_HEAD.NAME": roi_heads.ROI_MASK_HEAD_REGISTRY,
        "MODEL.ROI_KEYPOINT_HEAD.NAME": roi_heads.ROI_KEYPOINT_HEAD_REGISTRY,
        "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
    }
    for key, stock in BUILDERS.items():
        for name in stock:
            assert normdet_name(name) in registries[key]


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import normdet",
        pytest.param("import detectron2.modeling, normdet", marks=pytest.mark.slow),
        pytest.param("import normdet, detectron2.engine", marks=pytest.mark.slow),
    ],
)
def test_importing_normdet_registers_in_any_order_and_is_cheap(imports):
    code = (
        f"import sys\n{imports}\n"
        "import normdet\n"
        "assert 'detectron2' in sys.modules or not {'torch', 'triton'} & set(sys.modules)\n"
        "from detectron2.modeling import BACKBONE_REGISTRY\n"
        "assert 'build_normdet_resnet_fpn_backbone' in BACKBONE_REGISTRY\n"
        "from normdet import add_normdet_config, set_norm\n"
        "assert normdet.solver.build_optimizer\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
