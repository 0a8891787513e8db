"""What is compared: the ancestor's way, what `main.py` calls, and the machine's limit."""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.loader import build_loader, default_num_workers, size_batches
from network._deeplab import DeepLab
from utils.benchmark import ancestor
from utils.benchmark.timing import Work, timed
from utils.engine import LossMeter, evaluate, train_step
from utils.loss import build_criterion
from utils.optim import build_optimizer
from utils.precision import DTYPES, build_scaler
from utils.predictor import Predictor


@dataclasses.dataclass
class Workload:
    """What both do, and by precision how this project does it.

    The builders make ready what is not to be timed, and return what is.
    """

    images: int
    flops: float
    build_ancestor: Callable[[], Work]
    build_project: Callable[[str], Work]


def on_device(
    model: DeepLab, device: torch.device, layout: torch.memory_format = torch.channels_last
) -> DeepLab:
    """A copy of the model there."""
    return copy.deepcopy(model).to(device).to(memory_format=layout)


def training(
    model: DeepLab, batch: list[Tensor], iterations: int, device: torch.device
) -> Workload:
    """Iterations on one batch in the host's memory: images uint8, targets uint8, indices."""
    images, targets, _ = batch

    def build_ancestor() -> Work:
        own = on_device(model, device, torch.contiguous_format)
        optimizer = ancestor.build_optimizer(own)
        batches = [(model.normalize(images).contiguous(), targets)] * iterations
        return lambda: ancestor.train(own.train(), optimizer, batches)

    def build_project(precision: str) -> Work:
        own = on_device(model, device)
        optimizer = build_optimizer(own, 0.01, 0.1, precision)
        criterion, scheduler = build_criterion("ce", IGNORE_INDEX), StepLR(optimizer, 1000)
        scaler, losses = build_scaler(precision, device), LossMeter()

        def work() -> None:
            torch.backends.cudnn.benchmark = True  # as main.py
            own.train()
            for number in range(iterations):
                loss = train_step(own, batch, criterion, optimizer, scaler, precision)
                scheduler.step()
                losses.add(loss, number, [], batch[2])

        return work

    flops = iterations * count_flops(model.train(), tuple(images.shape))
    return Workload(iterations * len(images), flops, build_ancestor, build_project)


def evaluation(model: DeepLab, val_set: SegmentationDataset, device: torch.device) -> Workload:
    """Whole images of several sizes, from the files to the confusion matrix."""
    sizes, workers = val_set.image_sizes(), default_num_workers()

    def build_ancestor() -> Work:
        own, samples = (
            on_device(model, device, torch.contiguous_format),
            ancestor.AncestorSamples(val_set),
        )
        loader = DataLoader(samples, num_workers=workers, persistent_workers=workers > 0)
        return lambda: ancestor.evaluate(own, loader, val_set.num_classes)

    def build_project(precision: str) -> Work:
        loader = build_loader(val_set, size_batches(sizes, 8), workers, device.type == "cuda")
        return partial(evaluate, Predictor(on_device(model, device), precision), val_set, loader)

    pixels = sum(height * width for height, width in sizes)  # the work goes with them
    flops = count_flops(model.eval(), (1, 3, 512, 512)) * pixels / 512**2
    return Workload(len(val_set), flops, build_ancestor, build_project)


def draw_batch(size: int, number: int, num_classes: int) -> list[Tensor]:
    """Random images uint8 (N, 3, H, W), targets uint8 (N, H, W), indices; as the loader's."""
    generator = torch.Generator().manual_seed(0)
    shape = (number, size, size)
    images = torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8)
    targets = torch.randint(num_classes, shape, generator=generator, dtype=torch.uint8)
    batch = [images.permute(0, 3, 1, 2), targets, torch.arange(number)]
    return [part.pin_memory() for part in batch] if torch.cuda.is_available() else batch


def count_flops(model: nn.Module, image_shape: tuple[int, ...]) -> float:
    """FLOPs of a batch (N, 3, H, W): forward, and of a model in training mode backward too.

    Two for each multiplication and addition of convolutions; the rest is not counted. Runs on the
    meta device, which computes nothing.
    """
    model = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(model.training):
        logits = model(torch.empty(image_shape, device="meta"))
        if model.training:
            logits.sum().backward()
    return counter.get_total_flops()


def peak_flops(precision: str, device: torch.device) -> float:
    """The limit, FLOPs a second: a large matrix product or convolution, whichever is quicker."""
    dtype, (size, count) = DTYPES[precision], (8192, 20) if device.type == "cuda" else (4096, 1)
    channels, side = size // 8, 64
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
    conv = conv.to(device, dtype).to(memory_format=torch.channels_last)
    x = torch.randn(4, side, side, channels, device=device, dtype=dtype).permute(0, 3, 1, 2)
    flops = {"mm": 2 * size**3, "conv": 2 * 4 * side**2 * 9 * channels**2}
    products = {"mm": partial(torch.mm, a, b.t()), "conv": partial(conv, x)}

    def seconds(name: str) -> float:
        return timed(lambda: [products[name]() for _ in range(count)], device) / count

    return max(flops[name] / min(seconds(name) for _ in range(4)) for name in flops)
