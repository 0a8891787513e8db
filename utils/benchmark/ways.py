"""What is timed: both ways to train and to evaluate, on drawn images, and the machine's limit.

The public ancestor's way (VainF/DeepLabV3Plus-Pytorch): fp32, NCHW, no search of cuDNN's; images
are normalised on the CPU, floats travel, targets become int64 on the device; every loss is read;
evaluation goes image by image into NumPy's confusion matrix. Ours: the functions of `main.py`.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader
from torchvision.transforms import functional as F

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.custom import CustomSegmentation
from datasets.loader import build_loader, default_num_workers, size_batches
from datasets.shapes import CLASS_NAMES, draw_sample
from network._deeplab import DeepLab
from utils.common.imagenet import MEAN, STD
from utils.engine import evaluate, train_step
from utils.loss import build_criterion
from utils.optim import build_optimizer
from utils.precision import DTYPES, build_scaler
from utils.predictor import Predictor

Work = Callable[[], object]  # of one round

# (height, width): common sizes in VOC, as often as they come there.
VOC_SIZES = [(375, 500)] * 8 + [(333, 500)] * 5 + [(500, 375)] * 4 + [(500, 334)] * 3
VOC_SIZES += [(500, 333)] * 2 + [(281, 500)]


def draw_batch(size: int, number: int) -> list[Tensor]:
    """Random images uint8 (N, 3, H, W), targets uint8 (N, H, W), indices; as the loader's."""
    images = torch.randint(256, (number, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    targets = torch.randint(len(CLASS_NAMES), (number, size, size), dtype=torch.uint8)
    batch = [images, targets, torch.arange(number)]
    return [part.pin_memory() for part in batch] if torch.cuda.is_available() else batch


def draw_images(folder: Path, number: int) -> CustomSegmentation:
    """Draw a data set of VOC's sizes into a new folder."""
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    (folder / "class_names.txt").write_text("\n".join(CLASS_NAMES))
    rng = np.random.default_rng(0)
    for index in range(number):
        height, width = VOC_SIZES[index % len(VOC_SIZES)]
        height -= index // len(VOC_SIZES)  # more images are more sizes, as in VOC
        classes = rng.integers(1, len(CLASS_NAMES), 4).tolist()
        image, target = draw_sample((height, width), [(c, height / 6) for c in classes], rng)
        # As many bytes a pixel as VOC's.
        Image.fromarray(image).save(folder / "JPEGImages" / f"{index:04d}.jpg", quality=95)
        Image.fromarray(target).save(folder / "SegmentationClass" / f"{index:04d}.png")
    return CustomSegmentation(folder, "trainval")


def ancestors_training(model: DeepLab, batch: list[Tensor], iterations: int) -> Work:
    """Iterations of a copy of the model, which the work returns; the batch is `draw_batch`'s."""
    device = model.mean.device
    model = copy.deepcopy(model).train()
    images, targets = F.normalize(batch[0].contiguous() / 255, MEAN, STD), batch[1]
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)
    groups: list[dict] = [{"params": model.backbone.parameters(), "lr": 0.001}]
    groups += [{"params": model.classifier.parameters()}]
    optimizer = SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)

    def train() -> DeepLab:
        torch.backends.cudnn.benchmark = False  # nothing in its code sets it
        for _ in range(iterations):
            optimizer.zero_grad()
            loss = criterion(model.segment(images.to(device)), targets.to(device).long())
            loss.backward()
            optimizer.step()
            loss.item()
        return model

    return train


def training(model: DeepLab, batch: list[Tensor], iterations: int, precision: str) -> Work:
    """The same as this project does it, in "bf16", "fp16" or "fp32"."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, 0.01, 0.1, precision)
    criterion = build_criterion("ce", IGNORE_INDEX)
    scaler = build_scaler(precision, model.mean.device)

    def train() -> DeepLab:
        torch.backends.cudnn.benchmark = True  # as main.py
        for _ in range(iterations):
            train_step(model, batch, criterion, optimizer, scaler, precision)
        return model

    return train


def read_as_ancestor(paths: list[tuple[Path, Path]]) -> tuple[Tensor, Tensor]:
    """The one pair of files: image float32 (1, 3, H, W), normalised, and target uint8 (1, H, W)."""
    [(image_path, target_path)] = paths
    image = F.to_tensor(Image.open(image_path).convert("RGB"))
    target = torch.from_numpy(np.array(Image.open(target_path)))
    return F.normalize(image, MEAN, STD)[None], target[None]


def ancestors_evaluation(model: DeepLab, val_set: SegmentationDataset) -> Work:
    """From the files to the confusion matrix, int64 (C, C) of which the rows are targets."""
    device, num_classes = model.mean.device, val_set.num_classes
    model, workers = copy.deepcopy(model).eval(), default_num_workers()
    loader: DataLoader = DataLoader(
        list(zip(val_set.image_paths, val_set.target_paths, strict=True)),  # type: ignore[arg-type]
        collate_fn=read_as_ancestor, num_workers=workers, persistent_workers=workers > 0,
    )  # fmt: skip

    @torch.no_grad()
    def count() -> np.ndarray:
        counts = np.zeros((num_classes, num_classes), np.int64)
        for images, targets in loader:
            logits = model.segment(images.to(device))
            assert isinstance(logits, Tensor)  # in evaluation there is no auxiliary head
            pred, target = logits.argmax(1).cpu().numpy(), targets.numpy()
            valid = target != IGNORE_INDEX
            bins = num_classes * target[valid].astype(np.int64) + pred[valid]
            counts += np.bincount(bins, minlength=num_classes**2).reshape(counts.shape)
        return counts

    return count


def evaluation(model: DeepLab, val_set: SegmentationDataset, precision: str) -> Work:
    """The same as this project does it."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    predictor = Predictor(model, precision)
    is_cuda, batches = predictor.device.type == "cuda", size_batches(val_set.image_sizes(), 8)
    loader = build_loader(val_set, batches, default_num_workers(), pin_memory=is_cuda)
    return partial(evaluate, predictor, val_set, loader)


def limits(precision: str, device: torch.device) -> dict[int, Work]:
    """A large matrix product and a large convolution, by their FLOPs."""
    size, side = 16384 if device.type == "cuda" else 4096, 64
    channels = size // 8
    draw = partial(torch.randn, device=device, dtype=DTYPES[precision])
    a, b = draw(size, size), draw(size, size)
    x, weight = draw(4, side, side, channels), draw(channels, 3, 3, channels)
    conv = partial(nn.functional.conv2d, x.movedim(3, 1), weight.movedim(3, 1), padding=1)
    return {2 * size**3: partial(torch.mm, a, b.t()), 2 * 4 * side**2 * 9 * channels**2: conv}
