"""A copy of a model for inference: batch norms folded into the convolutions before them."""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Model = TypeVar("Model", bound=nn.Module)


def fuse_for_inference(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """A copy in evaluation mode, whose logits are those of the model but for rounding.

    A batch norm is folded into the convolution that its parent registers right before it, which in
    every model of `MODELS` also runs right before it. Others stay as they are.

    Args:
        model: left as it is.
        dtype: of the convolutions' weights: that of the autocast which the copy will run in, so
            that they are not cast anew for every image.
    """
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, conv), (bn_name, bn) in zip(children, children[1:], strict=False):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d | nn.SyncBatchNorm):
                parent.register_module(name, fuse_conv_bn_eval(conv, bn))
                parent.register_module(bn_name, nn.Identity())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(dtype)
    return model.requires_grad_(False)
