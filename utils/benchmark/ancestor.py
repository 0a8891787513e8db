"""The benchmark's reference mode: what the public ancestor does, as plainly.

fp32 and NCHW; Pillow resizes the whole image, and what remains of it is cropped, converted and
normalised on the CPU; floats travel to the device, targets become int64 there; the loss is read
after every iteration; evaluation goes image by image, its confusion matrix is NumPy's.

Each function also takes some of the `STEPS` that lead from there to this project, so that what one
of them gains can be told.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, RandomCrop
from torchvision.transforms import functional as F

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.loader import (
    LoaderSettings,
    Samples,
    TrainBatches,
    batches_per_epoch,
    size_batches,
)
from utils.common.imagenet import MEAN, STD
from utils.metrics import confusion_matrix
from utils.precision import autocast

# What each step changes, in the order in which the benchmark adds them.
STEPS = {
    "crop_first": ("data",),  # cut out what the crop shows, and resize that alone, as tensors
    "uint8": ("data", "train", "eval", "predict"),  # bytes travel, the device normalises
    "channels_last": ("train", "eval", "predict"),
    "autocast": ("train", "eval", "predict"),  # bf16 or fp16
    "folded": ("eval", "predict"),  # batch norms in the convolutions, weights cast once
    "size_batches": ("eval",),  # images of one size together
    "device_confusion": ("eval",),  # count where the prediction is
    "no_waiting": ("train", "eval"),  # pinned memory, copies that do not block, no loss.item()
}

Steps = Sequence[str]


class ResizeThenCrop:
    """Scale the whole image by 0.5 to 2.0, pad, crop at random, mirror at random; with Pillow.

    The factor is the first number drawn, as in `datasets.transforms.RandomScaleCrop`: seeded alike,
    both scale a sample alike.

    Args:
        crop_size: (height, width) of the result.
    """

    def __init__(self, crop_size: tuple[int, int]) -> None:
        self.crop_size = crop_size

    def __call__(self, image: Image.Image, target: Image.Image) -> tuple[Image.Image, Image.Image]:
        """Image and target of `crop_size`; what was padded is black, and void in the target."""
        scale = torch.empty(()).uniform_(0.5, 2.0).item()
        size = [max(round(length * scale), 1) for length in (image.height, image.width)]
        image = F.resize(image, size, InterpolationMode.BILINEAR)
        target = F.resize(target, size, InterpolationMode.NEAREST)
        y, x = (
            max(want - have + 1, 0) // 2 for want, have in zip(self.crop_size, size, strict=True)
        )
        if x or y:
            image, target = F.pad(image, [x, y]), F.pad(target, [x, y], fill=IGNORE_INDEX)
        place = RandomCrop.get_params(image, self.crop_size)
        image, target = F.crop(image, *place), F.crop(target, *place)
        if torch.rand(()) < 0.5:
            image, target = F.hflip(image), F.hflip(target)
        return image, target


class ReferenceSamples(Dataset):
    """The samples of a data set, read with Pillow.

    Args:
        dataset: where the files are; with the step crop_first its own reading and transform apply.
        crop_size: of `ResizeThenCrop`; None for whole images.
        steps: of `STEPS`.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        crop_size: tuple[int, int] | None = None,
        steps: Steps = (),
    ) -> None:
        self.dataset = dataset
        self.ids = dataset.ids
        self.transform = ResizeThenCrop(crop_size) if crop_size else None
        self.steps = steps

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image float32 (3, H, W), normalised (uint8 with the step), and target uint8 (H, W)."""
        if "crop_first" in self.steps:
            image, target = self.dataset[index]
        else:
            image, target = self._read(index)
            target = torch.from_numpy(np.array(target))
            image = F.pil_to_tensor(image) if "uint8" in self.steps else F.to_tensor(image)
        if "uint8" not in self.steps:
            image = F.normalize(F.convert_image_dtype(image), MEAN, STD)
        return image, target

    def _read(self, index: int) -> tuple[Image.Image, Image.Image]:
        image = Image.open(self.dataset.image_paths[index]).convert("RGB")
        target = Image.open(self.dataset.target_paths[index])
        return self.transform(image, target) if self.transform else (image, target)


def build_train_loader(
    dataset: SegmentationDataset,
    crop_size: tuple[int, int],
    batch_size: int,
    seed: int,
    num_workers: int,
    steps: Steps = (),
) -> DataLoader:
    """Batches (images, targets, indices) in the order of `datasets.loader.build_train_loader`."""
    settings, last = LoaderSettings(batch_size, seed), batches_per_epoch(dataset, batch_size)
    return DataLoader(
        Samples(ReferenceSamples(dataset, crop_size, steps), seed),
        batch_sampler=TrainBatches(len(dataset), settings, 0, last),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def build_val_loader(
    dataset: SegmentationDataset,
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
    steps: Steps = (),
) -> DataLoader:
    """One image at a time; with the step size_batches, `batch_size` images of one size."""
    batches = size_batches(sizes, batch_size if "size_batches" in steps else 1)
    return DataLoader(
        ReferenceSamples(dataset, steps=steps),
        batch_sampler=[[index for _, index in batch] for batch in batches],
        num_workers=num_workers,
        pin_memory=pin_memory and "no_waiting" in steps,
        persistent_workers=num_workers > 0,
    )


def build_optimizer(model: nn.Module, lr: float, backbone_lr_factor: float) -> Optimizer:
    """SGD as torch sets it up by itself."""
    groups = [
        {"params": model.backbone.parameters(), "lr": backbone_lr_factor * lr},
        {"params": model.classifier.parameters(), "lr": lr},
    ]
    return SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-4)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Uint8 (N, 3, H, W) to the network's input, as `DeepLab.normalize` computes it."""
    mean, std = (255 * torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return (images - mean).div_(std)


def to_device(
    images: torch.Tensor, targets: torch.Tensor, device: torch.device, steps: Steps
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as the network and the loss take it: float32 (N, 3, H, W), int64 (N, H, W)."""
    no_waiting = "no_waiting" in steps
    images = images.to(device, non_blocking=no_waiting)
    targets = targets.to(device, non_blocking=no_waiting).long()
    images = normalize(images) if "uint8" in steps else images.float()
    is_last = "channels_last" in steps
    layout = torch.channels_last if is_last else torch.contiguous_format
    return images.contiguous(memory_format=layout), targets


def train(
    model: nn.Module,
    criterion: nn.Module,
    batches: Iterable[Sequence[torch.Tensor]],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    scaler: torch.amp.GradScaler,
    precision: str,
    device: torch.device,
    steps: Steps = (),
) -> float:
    """Train on batches (images, targets, indices); returns the sum of the losses."""
    model.train()
    total = 0.0
    for images, targets, _ in batches:
        images, targets = to_device(images, targets, device, steps)
        optimizer.zero_grad()
        with autocast(precision, device):
            loss = criterion(model.segment(images), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        total += loss.detach() if "no_waiting" in steps else loss.item()
        scheduler.step()
    return float(total)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    num_classes: int,
    precision: str,
    device: torch.device,
    steps: Steps = (),
) -> np.ndarray:
    """The confusion matrix int64 (C, C) of batches (images, targets); rows are targets."""
    model.eval()
    counts = np.zeros((num_classes, num_classes), np.int64)
    on_device = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    for images, targets in loader:
        images, targets = to_device(images, targets, device, steps)
        with autocast(precision, device):
            pred = model.segment(images).argmax(1)
        if "device_confusion" in steps:
            on_device += confusion_matrix(targets, pred, num_classes, IGNORE_INDEX)
        else:
            pairs = zip(targets.cpu().numpy(), pred.cpu().numpy(), strict=True)
            counts += sum(count_pairs(target, pred, num_classes) for target, pred in pairs)
    return counts + on_device.cpu().numpy()


def count_pairs(target: np.ndarray, pred: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion matrix int64 (C, C) of one image; target and pred are int64 (H, W)."""
    valid = target < num_classes
    bins = target[valid] * num_classes + pred[valid]
    return np.bincount(bins, minlength=num_classes**2).reshape(num_classes, num_classes)


@torch.no_grad()
def predict(
    model: nn.Module, path: Path, precision: str, device: torch.device, steps: Steps = ()
) -> np.ndarray:
    """A file to class indices int64 (H, W)."""
    model.eval()
    image = Image.open(path).convert("RGB")
    if "uint8" in steps:
        image = F.pil_to_tensor(image)
    else:
        image = F.normalize(F.to_tensor(image), MEAN, STD)
    images, _ = to_device(image[None], torch.empty(0), device, steps)
    with autocast(precision, device):
        return model.segment(images).argmax(1)[0].cpu().numpy()
