"""The models by name, and `build_model()`."""

from collections.abc import Sequence

from torch import nn

from network._deeplab import DeepLab, DeepLabHead, DeepLabHeadPlus
from network.backbone import BACKBONES, build_backbone
from utils.common.errors import UserError
from utils.common.imagenet import MEAN, STD

HEADS = {"deeplabv3": DeepLabHead, "deeplabv3plus": DeepLabHeadPlus}
SHORT_NAMES = {"mobilenet_v2": "mobilenet"}  # the public ancestor's
MODELS = {
    f"{head_name}_{SHORT_NAMES.get(backbone, backbone)}": (head, backbone)
    for backbone in BACKBONES
    for head_name, head in HEADS.items()
}

# By output stride: "the rates are doubled when output_stride = 8" (V3, section 3.3).
ATROUS_RATES = {8: (12, 24, 36), 16: (6, 12, 18)}


def build_model(
    name: str,
    num_classes: int = 21,
    output_stride: int = 16,
    separable_conv: bool = False,
    backbone_weights: str = "none",
    bn_momentum: float | None = None,
    aux_head: bool = False,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> DeepLab:
    """Build a model of the table, in training mode, on the CPU.

    Args:
        name: a key of `MODELS`.
        num_classes: channels of the logits.
        output_stride: image size over size of the backbone's output, 8 or 16.
        separable_conv: separable 3x3 convolutions in the head.
        backbone_weights: see `build_backbone`.
        bn_momentum: momentum of the backbone's batch norms; None leaves torch's 0.1. The head's
            keep 0.1: they have no ImageNet statistics to protect.
        aux_head: add a second head, torchvision's `FCNHead`, on what the last stage gets (PSPNet,
            arXiv:1612.01105, section 3.3). Training alone uses it.
        mean: of the images that the weights were trained on, RGB in [0, 1].
        std: their standard deviation.

    Raises:
        UserError: a value is out of range, or the weights cannot be loaded.
    """
    if name not in MODELS:
        raise UserError(f"--model {name}: unknown: choose from {', '.join(MODELS)}")
    if output_stride not in ATROUS_RATES:
        raise UserError(f"--output_stride {output_stride}: must be 8 or 16")
    head, backbone_name = MODELS[name]
    backbone = build_backbone(backbone_name, output_stride, backbone_weights)
    classifier = head(
        backbone.low_level_channels,
        backbone.out_channels,
        num_classes,
        ATROUS_RATES[output_stride],
        separable_conv,
    )
    if bn_momentum is not None:
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = bn_momentum
    aux_classifier = None
    if aux_head:
        from torchvision.models.segmentation.fcn import FCNHead

        aux_classifier = FCNHead(backbone.aux_channels, num_classes)
    return DeepLab(backbone, classifier, aux_classifier, mean, std)
