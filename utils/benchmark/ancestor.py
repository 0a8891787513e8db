"""What the public ancestor (VainF/DeepLabV3Plus-Pytorch) does, as plainly: the benchmark's base.

fp32 and NCHW, without cuDNN's search; images are converted and normalised on the CPU, floats travel
to the device, targets become int64 there; the loss is read after every iteration; evaluation goes
image by image, its confusion matrix is NumPy's.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader
from torchvision.transforms import functional as F

from datasets.base import IGNORE_INDEX, SegmentationDataset
from network._deeplab import DeepLab
from utils.common.imagenet import MEAN, STD


class AncestorSamples(SegmentationDataset):
    """The files of a data set, read with Pillow."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        vars(self).update(vars(dataset))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image float32 (3, H, W), normalised, and target uint8 (H, W)."""
        image = F.to_tensor(Image.open(self.image_paths[index]).convert("RGB"))
        target = np.array(Image.open(self.target_paths[index]))
        return F.normalize(image, MEAN, STD), torch.from_numpy(target)


def build_optimizer(model: DeepLab) -> SGD:
    """SGD as torch sets it up by itself."""
    groups: list[dict] = [{"params": model.backbone.parameters(), "lr": 0.001}]
    groups += [{"params": model.classifier.parameters()}]
    return SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)


def train(model: DeepLab, optimizer: SGD, batches: Iterable[Sequence[torch.Tensor]]) -> list[float]:
    """Train on batches (images float32, targets uint8); returns the losses."""
    torch.backends.cudnn.benchmark = False  # nothing in its code sets it
    criterion, device, losses = nn.CrossEntropyLoss(ignore_index=255), model.mean.device, []
    for images, targets in batches:
        images, targets = images.to(device), targets.to(device).long()
        optimizer.zero_grad()
        loss = criterion(model.segment(images), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def evaluate(model: DeepLab, loader: DataLoader, num_classes: int) -> np.ndarray:
    """The confusion matrix int64 (C, C) of batches (images, targets); rows are targets."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    for images, targets in loader:
        logits = model.eval().segment(images.to(model.mean.device))
        assert isinstance(logits, torch.Tensor)  # in evaluation there is no auxiliary head
        pred, target = logits.argmax(1).cpu().numpy(), targets.numpy()
        valid = target != IGNORE_INDEX
        bins = num_classes * target[valid].astype(np.int64) + pred[valid]
        counts += np.bincount(bins, minlength=num_classes**2).reshape(counts.shape)
    return counts
