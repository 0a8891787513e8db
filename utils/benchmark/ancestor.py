"""What the public ancestor (VainF/DeepLabV3Plus-Pytorch) does, as plainly: the benchmark's base.

fp32 and NCHW, without cuDNN's search; images are converted and normalised on the CPU, floats travel
to the device, targets become int64 there; the loss is read after every iteration; evaluation goes
image by image, its confusion matrix is NumPy's.
"""

import copy

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader
from torchvision.transforms import functional as F

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.loader import default_num_workers
from network._deeplab import DeepLab
from utils.benchmark.timing import Work
from utils.common.imagenet import MEAN, STD


class AncestorSamples(SegmentationDataset):
    """The files of a data set, read with Pillow."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        vars(self).update(vars(dataset))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image float32 (3, H, W), normalised, and target uint8 (H, W)."""
        image = F.to_tensor(Image.open(self.image_paths[index]).convert("RGB"))
        target = np.array(Image.open(self.target_paths[index]))
        return F.normalize(image, MEAN, STD), torch.from_numpy(target)


def training(model: DeepLab, batch: list[Tensor], iterations: int) -> Work:
    """Iterations of a copy of the model, which are returned; as `project.training()`."""
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


def evaluation(model: DeepLab, val_set: SegmentationDataset) -> Work:
    """Counting a confusion matrix, int64 (C, C) of which the rows are targets."""
    device, num_classes = model.mean.device, val_set.num_classes
    model, samples = copy.deepcopy(model).eval(), AncestorSamples(val_set)
    workers = default_num_workers()
    loader = DataLoader(samples, num_workers=workers, persistent_workers=workers > 0)

    @torch.no_grad()
    def evaluate() -> np.ndarray:
        counts = np.zeros((num_classes, num_classes), np.int64)
        for images, targets in loader:
            logits = model.segment(images.to(device))
            assert isinstance(logits, Tensor)  # in evaluation there is no auxiliary head
            pred, target = logits.argmax(1).cpu().numpy(), targets.numpy()
            valid = target != IGNORE_INDEX
            bins = num_classes * target[valid].astype(np.int64) + pred[valid]
            counts += np.bincount(bins, minlength=num_classes**2).reshape(counts.shape)
        return counts

    return evaluate
