"""DeepLabV3 and DeepLabV3+ on several backbones."""

from network._deeplab import DeepLab
from network.modeling import MODELS, build_model

__all__ = ["MODELS", "DeepLab", "build_model"]
