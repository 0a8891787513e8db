"""What the public ancestor (VainF/DeepLabV3Plus-Pytorch) does, as plainly: the benchmark's base.

fp32 and NCHW; Pillow resizes the whole image, and what remains of it is cropped, converted and
normalised on the CPU; floats travel to the device, targets become int64 there; the loss is read
after every iteration; evaluation goes image by image, its confusion matrix is NumPy's.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, RandomCrop
from torchvision.transforms import functional as F

from datasets.base import IGNORE_INDEX, SegmentationDataset
from network._deeplab import DeepLab
from utils.common.imagenet import MEAN, STD


def resize_then_crop(
    image: Image.Image, target: Image.Image, crop_size: int
) -> tuple[Image.Image, Image.Image]:
    """Scale the whole image by 0.5 to 2.0, pad, crop at random, mirror at random.

    The factor is the first number drawn, as in `datasets.transforms.RandomScaleCrop`: seeded alike,
    both scale a sample alike. What was padded is black, and void in the target.
    """
    scale = torch.empty(()).uniform_(0.5, 2.0).item()
    size = [max(round(length * scale), 1) for length in (image.height, image.width)]
    image = F.resize(image, size, InterpolationMode.BILINEAR)
    target = F.resize(target, size, InterpolationMode.NEAREST)
    pad = [max(crop_size - length + 1, 0) // 2 for length in reversed(size)]
    image, target = F.pad(image, pad), F.pad(target, pad, fill=IGNORE_INDEX)
    place = RandomCrop.get_params(image, (crop_size, crop_size))
    image, target = F.crop(image, *place), F.crop(target, *place)
    if torch.rand(()) < 0.5:
        image, target = F.hflip(image), F.hflip(target)
    return image, target


class AncestorSamples(SegmentationDataset):
    """The files of a data set, read with Pillow: crops of `crop_size`, or whole images (None)."""

    def __init__(self, dataset: SegmentationDataset, crop_size: int | None = None) -> None:
        vars(self).update(vars(dataset))
        self.crop_size = crop_size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image float32 (3, H, W), normalised, and target uint8 (H, W)."""
        image = Image.open(self.image_paths[index]).convert("RGB")
        target: Image.Image = Image.open(self.target_paths[index])
        if self.crop_size:
            image, target = resize_then_crop(image, target, self.crop_size)
        return F.normalize(F.to_tensor(image), MEAN, STD), torch.from_numpy(np.array(target))


def build_optimizer(model: DeepLab, lr: float, backbone_lr_factor: float) -> Optimizer:
    """SGD as torch sets it up by itself."""
    groups = [
        {"params": model.backbone.parameters(), "lr": backbone_lr_factor * lr},
        {"params": model.classifier.parameters(), "lr": lr},
    ]
    return SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-4)


def train(
    model: DeepLab, optimizer: Optimizer, batches: Iterable[Sequence[torch.Tensor]]
) -> list[float]:
    """Train on batches (images float32, targets uint8); returns the losses."""
    device = next(model.parameters()).device
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)
    model.train()
    losses = []
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
    device = next(model.parameters()).device
    model.eval()
    counts = np.zeros((num_classes, num_classes), np.int64)
    for images, targets in loader:
        pred = classes_of(model, images.to(device))
        counts += count_pairs(targets.numpy(), pred, num_classes)
    return counts


def classes_of(model: DeepLab, images: torch.Tensor) -> np.ndarray:
    """Class indices int64 (N, H, W) of normalised images."""
    logits = model.segment(images)
    assert isinstance(logits, torch.Tensor)  # in evaluation there is no auxiliary head
    return logits.argmax(1).cpu().numpy()


def count_pairs(target: np.ndarray, pred: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion matrix int64 (C, C); target and pred are integers of one shape."""
    valid = target < num_classes
    bins = num_classes * target[valid].astype(np.int64) + pred[valid]
    return np.bincount(bins, minlength=num_classes**2).reshape(num_classes, num_classes)


@torch.no_grad()
def predict(model: DeepLab, path: Path) -> np.ndarray:
    """A file to class indices int64 (H, W)."""
    model.eval()
    image = F.normalize(F.to_tensor(Image.open(path).convert("RGB")), MEAN, STD)
    return classes_of(model, image[None].to(next(model.parameters()).device))[0]
