"""What an exported file computes."""

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

    def takes(self, image: torch.Tensor) -> torch.Tensor:
        """A uint8 image as the file takes it."""
        return self.model.normalize(image) if self.float_input else image
