"""What an exported file computes."""

import copy

import torch
from torch import nn

from network._deeplab import DeepLab


class Program(nn.Module):
    """What the file computes.

    Args:
        model: with folded batch norms.
        logits: give logits in place of classes.
        float_input: take normalised floats in place of bytes.
    """

    def __init__(self, model: DeepLab, logits: bool, float_input: bool) -> None:
        super().__init__()
        self.model: DeepLab = model
        self.logits = logits
        self.float_input = float_input

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image (N, 3, H, W) to classes uint8 (N, H, W), or to logits float32 (N, C, H, W)."""
        logits = self.model.segment(image) if self.float_input else self.model(image)
        assert isinstance(logits, torch.Tensor)  # a pair comes in training alone
        return logits if self.logits else logits.argmax(1).to(torch.uint8)


class HalfWeightConv2d(nn.Conv2d):
    """A convolution that keeps its weights in fp16 and computes in fp32: half the file."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.Conv2d`."""
        return self._conv_forward(x, self.weight.float(), self.bias)

    @classmethod
    def convert(cls, program: Program) -> Program:
        """A copy whose convolutions are such ones."""
        program = copy.deepcopy(program)
        for module in program.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.half()
                module.__class__ = cls
        return program
